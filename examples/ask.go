// Go's own client.   go run examples/ask.go [URL [MODEL PICTURE]]
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

var client = http.Client{Timeout: 10 * time.Second}

func ask(url, kind string, body io.Reader) []byte {
	answer, err := client.Post(url, kind, body)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		log.Fatalf("%s: %s %v", answer.Status, content, err)
	}
	return content
}

func main() {
	url := "http://localhost:8000"
	if len(os.Args) > 1 {
		url = os.Args[1]
	}
	json := `{"inputs": [[0,1,2,3,4,5,6,7,8,9]]}`
	fmt.Printf("%s\n", ask(url+"/predict/mlp", "application/json", strings.NewReader(json)))

	// As bytes, for large arrays: no number becomes text.
	var x bytes.Buffer
	binary.Write(&x, binary.LittleEndian, []float32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	y := make([]float32, 5)
	raw := bytes.NewReader(ask(url+"/predict/mlp", "application/octet-stream", &x))
	if err := binary.Read(raw, binary.LittleEndian, y); err != nil {
		log.Fatal(err)
	}
	fmt.Println(y)

	if len(os.Args) > 3 {
		picture, err := os.Open(os.Args[3])
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", ask(url+"/predict/"+os.Args[2]+"?top=1", "image/jpeg", picture))
	}
}

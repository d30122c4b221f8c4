// Java's own client, in Java 11 and later.   java examples/Ask.java [URL [MODEL PICTURE]]
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.time.Duration;

public class Ask {
    private static final HttpClient CLIENT = HttpClient.newHttpClient();

    private static byte[] ask(String url, String type, BodyPublisher body) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url))
            .header("Content-Type", type).timeout(Duration.ofSeconds(10)).POST(body).build();
        HttpResponse<byte[]> answer = CLIENT.send(request, BodyHandlers.ofByteArray());
        if (answer.statusCode() != 200) {
            throw new IllegalStateException(answer.statusCode() + ": " + new String(answer.body()));
        }
        return answer.body();
    }

    public static void main(String[] arguments) throws Exception {
        String url = arguments.length > 0 ? arguments[0] : "http://localhost:8000";

        String json = "{\"inputs\": [[0,1,2,3,4,5,6,7,8,9]]}";
        System.out.println(new String(ask(url + "/predict/mlp", "application/json", BodyPublishers.ofString(json))));

        // As bytes, for large arrays: no number becomes text.
        ByteBuffer x = ByteBuffer.allocate(40).order(ByteOrder.LITTLE_ENDIAN);
        for (int i = 0; i < 10; i++) {
            x.putFloat(i);
        }
        byte[] raw = ask(url + "/predict/mlp", "application/octet-stream", BodyPublishers.ofByteArray(x.array()));
        ByteBuffer y = ByteBuffer.wrap(raw).order(ByteOrder.LITTLE_ENDIAN);
        while (y.hasRemaining()) {
            System.out.print(y.getFloat() + " ");
        }
        System.out.println();

        if (arguments.length > 2) {
            String there = url + "/predict/" + arguments[1] + "?top=1";
            System.out.println(new String(ask(there, "image/jpeg", BodyPublishers.ofFile(Path.of(arguments[2])))));
        }
    }
}

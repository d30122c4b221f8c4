// Java's default client, many requests at once, and with Expect: 100-continue. Prints one line for each kind.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;

public class Many {
    private static ByteBuffer row(int value, int count) {
        ByteBuffer row = ByteBuffer.allocate(4 * count).order(ByteOrder.LITTLE_ENDIAN);
        for (int i = 0; i < count; i++) {
            row.putFloat(value);
        }
        return row;
    }

    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient(); // offers HTTP/2 with Upgrade: h2c
        for (boolean waits : new boolean[] {false, true}) {
            List<CompletableFuture<HttpResponse<byte[]>>> asked = new ArrayList<>();
            for (int i = 0; i < 64; i++) {
                HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + "/predict/mlp"))
                    .header("Content-Type", "application/octet-stream").expectContinue(waits)
                    .POST(BodyPublishers.ofByteArray(row(i, 10).array())).build();
                asked.add(client.sendAsync(request, BodyHandlers.ofByteArray()));
            }
            int right = 0;
            for (int i = 0; i < 64; i++) {
                HttpResponse<byte[]> answer = asked.get(i).get();
                float first = ByteBuffer.wrap(answer.body()).order(ByteOrder.LITTLE_ENDIAN).getFloat();
                if (answer.statusCode() == 200 && answer.version() == HttpClient.Version.HTTP_1_1 && first == 225f * i) {
                    right++;
                }
            }
            System.out.println(right);
        }
        HttpRequest wrong = HttpRequest.newBuilder(URI.create(arguments[0] + "/predict/mlp"))
            .header("Content-Type", "application/json").POST(BodyPublishers.ofString("{")).build();
        System.out.println(client.send(wrong, BodyHandlers.ofString()).body());
    }
}

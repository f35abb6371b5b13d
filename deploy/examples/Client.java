// Ticks, or trade events, from the gateway in Java. Reconnects, and goes on where it was.
//
//   java -cp gson.jar Client.java [CODE ...]      ticks of these codes (600519.SH 000001.SZ)
//   java -cp gson.jar Client.java trade [FILE]    every trade event once; FILE (position.txt) keeps the position
//
// Needs JDK 11 or later (java.net.http) and Gson (com.google.code.gson:gson, Debian: libgoogle-gson-java).
// QMT_BRIDGE_URL is the gateway (ws://127.0.0.1:8000), QMT_BRIDGE_API_KEY the key. Tried with OpenJDK 17 and Gson 2.10.
// Lines: `tick CODE EPOCH SEQ PRICE`, `trade SEQ TYPE`, and `gap ...` where something is missing for good.

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.time.Duration;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

public class Client {
    static final Duration SILENCE = Duration.ofSeconds(40); // the gateway sends a heartbeat after 15 s
    static final long FIRST_DELAY_MS = 500;
    static final long LONGEST_DELAY_MS = 30_000;
    static final Set<Integer> FINAL_CLOSES = Set.of(1003, 1007, 1008, 1009); // the same request would be refused again
    static final Set<String> NOTICES = Set.of("error", "feed", "skipped", "closing");

    interface Stream {
        String path();

        String request(); // null: none is needed

        void take(JsonObject frame) throws IOException;
    }

    static class Ticks implements Stream {
        private final JsonArray codes = new JsonArray();
        private final JsonObject positions = new JsonObject(); // by code: behind which frame to go on

        Ticks(List<String> codes) {
            codes.forEach(this.codes::add);
        }

        public String path() {
            return "/ws/realtime?ctl=1";
        }

        public String request() {
            JsonObject request = JsonParser.parseString(
                "{\"action\": \"subscribe\", \"id\": 1, \"seq\": true, \"complete\": true}").getAsJsonObject();
            request.add("stocks", codes);
            if (positions.size() > 0) request.add("start", positions); // other codes begin with their last value
            return request.toString();
        }

        public void take(JsonObject frame) {
            if (typeOf(frame).equals("gap")) {
                System.out.println("gap " + text(frame, "code") + " " + text(frame, "reason"));
            }
            if (frame.has("start")) { // of the ack: what is missing right behind a position
                for (var each : frame.getAsJsonObject("start").entrySet()) {
                    JsonObject start = each.getValue().getAsJsonObject();
                    if (start.get("complete").getAsBoolean()) continue;
                    System.out.println("gap " + each.getKey() + " " + text(start, "reason"));
                }
            }
            if (!typeOf(frame).equals("data")) return;
            JsonObject position = new JsonObject();
            for (String name : List.of("epoch", "seq", "market")) {
                if (frame.has(name)) position.add(name, frame.get(name));
            }
            long epoch = position.get("epoch").getAsLong(), seq = position.get("seq").getAsLong();
            for (var each : frame.getAsJsonObject("data").entrySet()) {
                String code = each.getKey();
                JsonObject last = positions.getAsJsonObject(code);
                if (last != null && last.get("epoch").getAsLong() == epoch && seq <= last.get("seq").getAsLong()) {
                    continue; // a last value that was here before
                }
                for (JsonElement record : each.getValue().getAsJsonArray()) {
                    System.out.println(
                        "tick " + code + " " + epoch + " " + seq + " " + record.getAsJsonObject().get("lastPrice"));
                }
                positions.add(code, position);
            }
        }
    }

    static class Trades implements Stream {
        private final Path file;
        private long seq; // 0: from the first event of the journal on
        private long epoch;

        Trades(Path file) throws IOException {
            this.file = file;
            if (Files.exists(file)) {
                String[] position = Files.readString(file).trim().split(" ");
                seq = Long.parseLong(position[0]);
                epoch = Long.parseLong(position[1]);
            }
        }

        public String path() {
            return "/ws/trade?ctl=1&after=" + seq + (epoch > 0 ? "&epoch=" + epoch : "");
        }

        public String request() {
            return null;
        }

        public void take(JsonObject frame) throws IOException {
            if (typeOf(frame).equals("subscribed")) {
                long after = frame.get("after").getAsLong();
                if (after != seq) System.out.println("gap trade " + seq + " to " + after);
                keep(after, frame.get("epoch").getAsLong());
            } else if (frame.has("seq") && frame.has("data") && frame.get("seq").getAsLong() > seq) {
                // Into a database write the event and its position in one transaction: then nothing is ever there twice.
                System.out.println("trade " + frame.get("seq") + " " + typeOf(frame));
                keep(frame.get("seq").getAsLong(), epoch);
            }
        }

        private void keep(long seq, long epoch) throws IOException {
            this.seq = seq;
            this.epoch = epoch;
            Path written = Path.of(file + ".new");
            Files.writeString(written, seq + " " + epoch + "\n");
            Files.move(written, file, StandardCopyOption.ATOMIC_MOVE);
        }
    }

    static String typeOf(JsonObject frame) {
        return frame.has("type") ? frame.get("type").getAsString() : "";
    }

    static String text(JsonObject frame, String name) {
        return frame.has(name) ? frame.get(name).getAsString() : "";
    }

    /** A connection: gives each frame to the stream; `end` has the close code, or why there is none. */
    static class Connection implements WebSocket.Listener {
        final CompletableFuture<Integer> end = new CompletableFuture<>();
        volatile long heard = System.nanoTime();
        volatile boolean opened; // the gateway has sent a frame
        volatile Exception fatal; // the disk, or a frame that this program does not understand
        volatile String reason = "";
        private boolean stopped;
        private final Stream stream;
        private final StringBuilder parts = new StringBuilder();

        Connection(Stream stream) {
            this.stream = stream;
        }

        @Override
        public CompletionStage<?> onText(WebSocket socket, CharSequence data, boolean last) {
            heard = System.nanoTime();
            parts.append(data);
            if (last) {
                try {
                    take(parts.toString());
                } catch (IOException | RuntimeException failed) {
                    fatal = failed;
                    end.completeExceptionally(failed);
                }
                parts.setLength(0);
            }
            socket.request(1);
            return null;
        }

        private synchronized void take(String text) throws IOException {
            if (stopped) return;
            opened = true;
            JsonObject frame = JsonParser.parseString(text).getAsJsonObject();
            boolean refused = frame.has("rejected") && frame.getAsJsonArray("rejected").size() > 0;
            if (refused || NOTICES.contains(typeOf(frame))) System.err.println(text);
            stream.take(frame);
        }

        @Override
        public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
            this.reason = reason;
            end.complete(code);
            return null;
        }

        @Override
        public void onError(WebSocket socket, Throwable error) {
            end.completeExceptionally(error);
        }

        /** Ends the work before the process does: not between an event and its position. */
        synchronized void stop() {
            stopped = true;
        }

        /** Waits for the end and returns its code. */
        int await() throws ExecutionException, InterruptedException {
            while (true) {
                try {
                    return end.get(1, TimeUnit.SECONDS);
                } catch (TimeoutException quiet) {
                    if (System.nanoTime() - heard > SILENCE.toNanos()) {
                        end.completeExceptionally(new IOException("nothing for " + SILENCE.toSeconds() + " s"));
                    }
                }
            }
        }
    }

    private final HttpClient client = HttpClient.newHttpClient();
    private final String base = System.getenv().getOrDefault("QMT_BRIDGE_URL", "ws://127.0.0.1:8000");
    private final Stream stream;
    private volatile WebSocket socket;
    private volatile Connection connection;
    private volatile boolean stopping;

    Client(Stream stream) {
        this.stream = stream;
    }

    private WebSocket open(Connection connection) throws ExecutionException, InterruptedException {
        WebSocket.Builder builder = client.newWebSocketBuilder().connectTimeout(Duration.ofSeconds(10));
        String key = System.getenv("QMT_BRIDGE_API_KEY");
        if (key != null) builder.header("Authorization", "Bearer " + key);
        WebSocket opened = builder.buildAsync(URI.create(base + stream.path()), connection).get();
        String request = stream.request();
        if (request != null) {
            try {
                opened.sendText(request, true).get();
            } catch (ExecutionException closed) {
                // By the gateway, as with a wrong key: `end` has the code.
            }
        }
        return opened;
    }

    void run() throws Exception {
        Runtime.getRuntime().addShutdownHook(new Thread(this::stop));
        long delay = FIRST_DELAY_MS;
        while (true) {
            connection = new Connection(stream);
            String why;
            try {
                socket = open(connection);
                int code = connection.await();
                why = code + " " + connection.reason;
                if (FINAL_CLOSES.contains(code)) {
                    System.err.println("closed with " + why);
                    System.exit(1);
                }
            } catch (ExecutionException failed) {
                if (connection.fatal != null) throw connection.fatal;
                why = String.valueOf(failed.getCause());
            }
            if (stopping) return;
            if (socket != null) socket.abort();
            if (connection.opened) delay = FIRST_DELAY_MS;
            long wait = ThreadLocalRandom.current().nextLong(delay / 2, delay);
            System.err.println("lost (" + why + "); again in " + wait + " ms");
            Thread.sleep(wait);
            delay = Math.min(2 * delay, LONGEST_DELAY_MS);
        }
    }

    /** Ctrl-C: sends a close frame and waits for the answer, a second at most. */
    private void stop() {
        stopping = true;
        connection.stop();
        if (socket == null || socket.isOutputClosed()) return;
        try {
            socket.sendClose(WebSocket.NORMAL_CLOSURE, "").get(1, TimeUnit.SECONDS);
            connection.end.get(1, TimeUnit.SECONDS);
        } catch (ExecutionException | InterruptedException | TimeoutException unanswered) {
            socket.abort();
        }
    }

    public static void main(String[] args) throws Exception {
        if (args.length > 0 && args[0].equals("trade")) {
            new Client(new Trades(Path.of(args.length > 1 ? args[1] : "position.txt"))).run();
        } else {
            new Client(new Ticks(args.length > 0 ? List.of(args) : List.of("600519.SH", "000001.SZ"))).run();
        }
    }
}

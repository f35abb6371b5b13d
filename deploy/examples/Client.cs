// Ticks, or trade events, from the gateway in C#. Reconnects, and goes on where it was.
//
//   dotnet new console --output example --use-program-main && cd example && dotnet add package Newtonsoft.Json
//   cp ../Client.cs Program.cs
//   dotnet run -- [CODE ...]      ticks of these codes (600519.SH 000001.SZ)
//   dotnet run -- trade [FILE]    every trade event once; FILE (position.txt) keeps the position
//
// With Mono: mcs -r:Newtonsoft.Json.dll Client.cs && mono Client.exe [CODE ...]
// QMT_BRIDGE_URL is the gateway (ws://127.0.0.1:8000), QMT_BRIDGE_API_KEY the key. Tried with Mono 6.8 and
// Newtonsoft.Json 6.0; not tried with .NET.
// Lines: `tick CODE EPOCH SEQ PRICE`, `trade SEQ TYPE`, and `gap ...` where something is missing for good.

using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Net.WebSockets;
using System.Text;
using System.Threading;
using System.Threading.Tasks;
using Newtonsoft.Json.Linq;

interface IStream
{
    string Path { get; }
    JObject Request { get; } // null: none is needed
    void Take(JObject frame);
}

class Ticks : IStream
{
    readonly string[] codes;
    readonly JObject positions = new JObject(); // by code: behind which frame to go on

    public Ticks(string[] codes) { this.codes = codes; }

    public string Path => "/ws/realtime?ctl=1";

    public JObject Request
    {
        get
        {
            var request = JObject.FromObject(
                new { action = "subscribe", id = 1, stocks = codes, seq = true, complete = true });
            if (positions.Count > 0) request["start"] = positions; // other codes begin with their last value
            return request;
        }
    }

    public void Take(JObject frame)
    {
        if ((string)frame["type"] == "gap") Console.WriteLine($"gap {frame["code"]} {frame["reason"]}");
        if (frame["start"] is JObject starts) // of the ack: what is missing right behind a position
            foreach (var start in starts.Properties().Where(start => !(bool)start.Value["complete"]))
                Console.WriteLine($"gap {start.Name} {start.Value["reason"]}");
        if ((string)frame["type"] != "data") return;
        long epoch = (long)frame["epoch"], seq = (long)frame["seq"];
        foreach (var each in ((JObject)frame["data"]).Properties())
        {
            var last = positions[each.Name];
            if (last != null && (long)last["epoch"] == epoch && seq <= (long)last["seq"])
                continue; // a last value that was here before
            foreach (var record in each.Value)
                Console.WriteLine($"tick {each.Name} {epoch} {seq} {record["lastPrice"]}");
            var position = new JObject { ["epoch"] = epoch, ["seq"] = seq };
            if (frame["market"] != null) position["market"] = frame["market"];
            positions[each.Name] = position;
        }
    }
}

class Trades : IStream
{
    readonly string file;
    long seq; // 0: from the first event of the journal on
    long epoch;

    public Trades(string file)
    {
        this.file = file;
        if (!File.Exists(file)) return;
        var position = File.ReadAllText(file).Split();
        seq = long.Parse(position[0]);
        epoch = long.Parse(position[1]);
    }

    public string Path => $"/ws/trade?ctl=1&after={seq}" + (epoch > 0 ? $"&epoch={epoch}" : "");

    public JObject Request => null;

    public void Take(JObject frame)
    {
        if ((string)frame["type"] == "subscribed")
        {
            var after = (long)frame["after"];
            if (after != seq) Console.WriteLine($"gap trade {seq} to {after}");
            Keep(after, (long)frame["epoch"]);
        }
        else if (frame["data"] != null && (long)frame["seq"] > seq)
        {
            // Into a database write the event and its position in one transaction: then nothing is ever there twice.
            Console.WriteLine($"trade {frame["seq"]} {frame["type"]}");
            Keep((long)frame["seq"], epoch);
        }
    }

    void Keep(long newSeq, long newEpoch)
    {
        (seq, epoch) = (newSeq, newEpoch);
        File.WriteAllText(file + ".new", $"{seq} {epoch}\n");
        if (File.Exists(file)) File.Replace(file + ".new", file, null);
        else File.Move(file + ".new", file);
    }
}

class Client
{
    static readonly TimeSpan Silence = TimeSpan.FromSeconds(40); // the gateway sends a heartbeat after 15 s
    const int FirstDelayMs = 500, LongestDelayMs = 30000;
    static readonly int[] FinalCloses = { 1003, 1007, 1008, 1009 }; // the same request would be refused again
    static readonly string[] Notices = { "error", "feed", "skipped", "closing" };

    readonly IStream stream;
    readonly CancellationToken stop;
    readonly byte[] buffer = new byte[65536];
    bool opened; // the gateway has sent a frame on the newest connection

    Client(IStream stream, CancellationToken stop) { this.stream = stream; this.stop = stop; }

    static async Task<ClientWebSocket> Connect(IStream stream, CancellationToken stop)
    {
        var socket = new ClientWebSocket();
        var key = Environment.GetEnvironmentVariable("QMT_BRIDGE_API_KEY");
        if (!string.IsNullOrEmpty(key)) socket.Options.SetRequestHeader("Authorization", "Bearer " + key);
        var address = Environment.GetEnvironmentVariable("QMT_BRIDGE_URL") ?? "ws://127.0.0.1:8000";
        // A source of its own: Mono ends the connection whenever the token is cancelled with which it was opened.
        using (var opening = CancellationTokenSource.CreateLinkedTokenSource(stop))
        {
            opening.CancelAfter(TimeSpan.FromSeconds(10));
            await socket.ConnectAsync(new Uri(address + stream.Path), opening.Token);
            if (stream.Request != null)
            {
                var request = new ArraySegment<byte>(Encoding.UTF8.GetBytes(stream.Request.ToString()));
                await socket.SendAsync(request, WebSocketMessageType.Text, true, opening.Token);
            }
        }
        return socket;
    }

    /// <summary>Reads one message; null is a close.</summary>
    async Task<string> Receive(ClientWebSocket socket)
    {
        // Not cancelled by `stop`, which would end the connection without a close.
        using (var silence = new CancellationTokenSource(Silence))
        using (var text = new MemoryStream())
        {
            while (true)
            {
                var part = await socket.ReceiveAsync(new ArraySegment<byte>(buffer), silence.Token);
                if (part.MessageType == WebSocketMessageType.Close) return null;
                text.Write(buffer, 0, part.Count);
                if (part.EndOfMessage) return Encoding.UTF8.GetString(text.GetBuffer(), 0, (int)text.Length);
            }
        }
    }

    /// <summary>Sends a close frame; <c>Receive</c> ends with the answer, or after a second.</summary>
    static async void Close(ClientWebSocket socket)
    {
        try
        {
            await socket.CloseOutputAsync(WebSocketCloseStatus.NormalClosure, "", CancellationToken.None);
            await Task.Delay(1000);
        }
        catch (Exception) { } // it was lost already
        socket.Abort();
    }

    /// <summary>Follows one connection until it ends; returns the close code, 1006 without one, and why.</summary>
    async Task<(int, string)> Follow()
    {
        opened = false;
        ClientWebSocket socket;
        try { socket = await Connect(stream, stop); }
        catch (Exception lost) { return (1006, lost.Message); }
        using (socket)
        using (stop.Register(() => Close(socket)))
        {
            while (true)
            {
                string text;
                try { text = await Receive(socket); }
                catch (Exception lost) { return (1006, lost.Message); }
                if (text == null) return ((int)(socket.CloseStatus ?? 0), socket.CloseStatusDescription);
                opened = true;
                var frame = JObject.Parse(text);
                if (Notices.Contains((string)frame["type"]) || frame["rejected"]?.HasValues == true)
                    Console.Error.WriteLine(text);
                stream.Take(frame);
            }
        }
    }

    async Task<int> Run()
    {
        var random = new Random();
        for (var delay = FirstDelayMs; ; delay = Math.Min(2 * delay, LongestDelayMs))
        {
            var (code, why) = await Follow();
            if (stop.IsCancellationRequested) return 0;
            if (FinalCloses.Contains(code))
            {
                Console.Error.WriteLine($"closed with {code}: {why}");
                return 1;
            }
            if (opened) delay = FirstDelayMs;
            var wait = random.Next(delay / 2, delay);
            Console.Error.WriteLine($"lost ({code} {why}); again in {wait} ms");
            try { await Task.Delay(wait, stop); }
            catch (TaskCanceledException) { return 0; }
        }
    }

    static int Main(string[] args)
    {
        var stop = new CancellationTokenSource();
        Console.CancelKeyPress += (_, pressed) => { pressed.Cancel = true; stop.Cancel(); };
        IStream stream = args.FirstOrDefault() == "trade"
            ? (IStream)new Trades(args.Length > 1 ? args[1] : "position.txt")
            : new Ticks(args.Length > 0 ? args : new[] { "600519.SH", "000001.SZ" });
        return new Client(stream, stop.Token).Run().GetAwaiter().GetResult();
    }
}

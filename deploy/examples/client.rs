// Ticks, or trade events, from the gateway in Rust. Reconnects, and goes on where it was.
//
//   cargo run --release -- [CODE ...]      ticks of these codes (600519.SH 000001.SZ)
//   cargo run --release -- trade [FILE]    every trade event once; FILE (position.txt) keeps the position
//
// This is src/main.rs of a crate whose Cargo.toml has (native-tls is for wss://; on Linux it needs OpenSSL's headers):
//   [dependencies]
//   ctrlc = "3"
//   rand = "0.9"
//   serde_json = "1"
//   tungstenite = { version = "0.29", features = ["native-tls"] }
//
// QMT_BRIDGE_URL is the gateway (ws://127.0.0.1:8000), QMT_BRIDGE_API_KEY the key. Tried with Rust 1.95 and
// tungstenite 0.29, over ws://.
// Lines: `tick CODE EPOCH SEQ PRICE`, `trade SEQ TYPE`, and `gap ...` where something is missing for good.

use serde_json::{json, Map, Value};
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::{header::AUTHORIZATION, Uri};
use tungstenite::protocol::{frame::coding::CloseCode, CloseFrame};
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{client_tls, Message, WebSocket};

const SILENCE: Duration = Duration::from_secs(40); // the gateway sends a heartbeat after 15 s
const LOOK: Duration = Duration::from_millis(200); // how soon Ctrl-C is seen
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
const FINAL_CLOSES: [u16; 4] = [1003, 1007, 1008, 1009]; // the same request would be refused again

static STOPPING: AtomicBool = AtomicBool::new(false);

trait Stream {
    fn path(&self) -> String;
    fn request(&self) -> Option<Value>;
    fn take(&mut self, frame: &Value) -> io::Result<()>;
}

struct Ticks {
    codes: Vec<String>,
    positions: Map<String, Value>, // by code: behind which frame to go on
}

impl Stream for Ticks {
    fn path(&self) -> String {
        "/ws/realtime?ctl=1".into()
    }

    fn request(&self) -> Option<Value> {
        let mut request = json!({"action": "subscribe", "id": 1, "stocks": self.codes, "seq": true, "complete": true});
        if !self.positions.is_empty() {
            request["start"] = json!(self.positions); // other codes begin with their last value
        }
        Some(request)
    }

    fn take(&mut self, frame: &Value) -> io::Result<()> {
        if frame["type"] == "gap" {
            println!("gap {} {}", text(&frame["code"]), text(&frame["reason"]));
        }
        // Of the ack: what is missing right behind a position.
        for (code, start) in frame["start"].as_object().into_iter().flatten() {
            if start["complete"] == false {
                println!("gap {code} {}", text(&start["reason"]));
            }
        }
        let Some(quotes) = frame["data"].as_object().filter(|_| frame["type"] == "data") else {
            return Ok(());
        };
        let seq = frame["seq"].as_u64();
        for (code, records) in quotes {
            if let Some(last) = self.positions.get(code) {
                if last["epoch"] == frame["epoch"] && seq <= last["seq"].as_u64() {
                    continue; // a last value that was here before
                }
            }
            for record in records.as_array().into_iter().flatten() {
                println!("tick {code} {} {} {}", frame["epoch"], frame["seq"], record["lastPrice"]);
            }
            let mut position = json!({"epoch": frame["epoch"], "seq": frame["seq"]});
            if let Some(market) = frame.get("market") {
                position["market"] = market.clone();
            }
            self.positions.insert(code.clone(), position);
        }
        Ok(())
    }
}

struct Trades {
    file: String,
    seq: u64, // 0: from the first event of the journal on
    epoch: u64,
}

impl Trades {
    fn open(file: String) -> Result<Self, Box<dyn Error>> {
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => "0 0".into(),
            other => other?,
        };
        let (seq, epoch) = text.trim().split_once(' ').ok_or("the file has no position")?;
        Ok(Self { seq: seq.parse()?, epoch: epoch.parse()?, file })
    }

    fn keep(&mut self, seq: u64, epoch: u64) -> io::Result<()> {
        (self.seq, self.epoch) = (seq, epoch);
        let written = format!("{}.new", self.file);
        fs::write(&written, format!("{seq} {epoch}\n"))?;
        fs::rename(written, &self.file)
    }
}

impl Stream for Trades {
    fn path(&self) -> String {
        let epoch = if self.epoch > 0 { format!("&epoch={}", self.epoch) } else { String::new() };
        format!("/ws/trade?ctl=1&after={}{epoch}", self.seq)
    }

    fn request(&self) -> Option<Value> {
        None
    }

    fn take(&mut self, frame: &Value) -> io::Result<()> {
        if frame["type"] == "subscribed" {
            let after = frame["after"].as_u64().unwrap_or(self.seq);
            if after != self.seq {
                println!("gap trade {} to {after}", self.seq);
            }
            self.keep(after, frame["epoch"].as_u64().unwrap_or(0))?;
        } else if let (Some(seq), true) = (frame["seq"].as_u64(), frame["data"].is_object()) {
            if seq > self.seq {
                // Into a database write the event and its position in one transaction: then nothing is ever there twice.
                println!("trade {seq} {}", text(&frame["type"]));
                self.keep(seq, self.epoch)?;
            }
        }
        Ok(())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

enum End {
    Stopped,
    Refused(String),
    Lost(String),
}

/// Connects, and sends the request. Returns the TCP stream too: a read timeout is set there, whatever is above it.
fn connect(
    base: &str,
    stream: &dyn Stream,
) -> Result<(WebSocket<MaybeTlsStream<TcpStream>>, TcpStream), Box<dyn Error>> {
    let uri: Uri = format!("{base}{}", stream.path()).parse()?;
    let usual = if uri.scheme_str() == Some("wss") { 443 } else { 80 };
    let tcp = TcpStream::connect((uri.host().ok_or("the address has no host")?, uri.port_u16().unwrap_or(usual)))?;
    tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
    let below = tcp.try_clone()?;
    let mut opening = uri.into_client_request()?;
    if let Ok(key) = env::var("QMT_BRIDGE_API_KEY") {
        opening.headers_mut().insert(AUTHORIZATION, format!("Bearer {key}").parse()?);
    }
    let (mut socket, _) = client_tls(opening, tcp)?;
    if let Some(request) = stream.request() {
        socket.send(Message::text(request.to_string()))?;
    }
    Ok((socket, below))
}

/// Follows one connection until it ends; `opened` says whether the gateway has sent a frame on it.
fn follow(base: &str, stream: &mut dyn Stream, opened: &mut bool) -> Result<End, Box<dyn Error>> {
    let (mut socket, tcp) = match connect(base, stream) {
        Ok(connection) => connection,
        Err(error) => return Ok(End::Lost(error.to_string())),
    };
    tcp.set_read_timeout(Some(LOOK))?;
    let mut heard = Instant::now();
    let mut said_goodbye = None;
    loop {
        if STOPPING.load(Ordering::Relaxed) {
            let closing = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            let since = *said_goodbye.get_or_insert_with(|| {
                let _ = socket.close(Some(closing)).and_then(|()| socket.flush()); // it may be lost already
                Instant::now()
            });
            if since.elapsed() > Duration::from_secs(1) {
                return Ok(End::Stopped);
            }
        }
        match socket.read() {
            Ok(Message::Text(message)) => {
                (heard, *opened) = (Instant::now(), true);
                let frame: Value = serde_json::from_str(&message)?;
                let refused = frame["rejected"].as_array().is_some_and(|codes| !codes.is_empty());
                if refused || matches!(text(&frame["type"]), "error" | "feed" | "skipped" | "closing") {
                    eprintln!("{message}");
                }
                stream.take(&frame)?;
            }
            Ok(Message::Close(_)) if said_goodbye.is_some() => return Ok(End::Stopped),
            Ok(Message::Close(Some(close))) => {
                let _ = socket.flush(); // the answer to the close
                let why = format!("{} {}", close.code, close.reason);
                let is_final = FINAL_CLOSES.contains(&close.code.into());
                return Ok(if is_final { End::Refused(why) } else { End::Lost(why) });
            }
            Ok(_) => heard = Instant::now(),
            Err(tungstenite::Error::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) =>
            {
                if heard.elapsed() > SILENCE {
                    return Ok(End::Lost(format!("nothing for {SILENCE:?}")));
                }
            }
            Err(_) if said_goodbye.is_some() => return Ok(End::Stopped),
            Err(error) => return Ok(End::Lost(error.to_string())),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    ctrlc::set_handler(|| STOPPING.store(true, Ordering::Relaxed))?;
    let base = env::var("QMT_BRIDGE_URL").unwrap_or_else(|_| "ws://127.0.0.1:8000".into());
    let args: Vec<String> = env::args().skip(1).collect();
    let mut stream: Box<dyn Stream> = if args.first().is_some_and(|first| first == "trade") {
        Box::new(Trades::open(args.get(1).cloned().unwrap_or_else(|| "position.txt".into()))?)
    } else {
        let codes = if args.is_empty() { vec!["600519.SH".into(), "000001.SZ".into()] } else { args };
        Box::new(Ticks { codes, positions: Map::new() })
    };
    let mut delay = FIRST_DELAY;
    loop {
        let mut opened = false;
        let why = match follow(&base, stream.as_mut(), &mut opened)? {
            End::Stopped => return Ok(()),
            End::Refused(why) => {
                eprintln!("closed with {why}");
                process::exit(1);
            }
            End::Lost(why) => why,
        };
        if opened {
            delay = FIRST_DELAY;
        }
        let until = Instant::now() + delay.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        eprintln!("lost ({why}); again in {:?}", until - Instant::now());
        while Instant::now() < until {
            if STOPPING.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
        delay = LONGEST_DELAY.min(2 * delay);
    }
}

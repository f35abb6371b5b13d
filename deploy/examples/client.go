// Ticks, or trade events, from the gateway in Go. Reconnects, and goes on where it was.
//
//	go mod init example && go get github.com/gorilla/websocket
//	go run client.go [CODE ...]     ticks of these codes (600519.SH 000001.SZ)
//	go run client.go trade [FILE]   every trade event once; FILE (position.txt) keeps the position
//
// QMT_BRIDGE_URL is the gateway (ws://127.0.0.1:8000), QMT_BRIDGE_API_KEY the key. Tried with Go 1.19 and
// gorilla/websocket 1.5.0.
// Lines: `tick CODE EPOCH SEQ PRICE`, `trade SEQ TYPE`, and `gap ...` where something is missing for good.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"math/rand"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/gorilla/websocket"
)

const (
	silence      = 40 * time.Second // the gateway sends a heartbeat after 15 s
	firstDelay   = 500 * time.Millisecond
	longestDelay = 30 * time.Second
)

type position struct {
	Epoch  uint64 `json:"epoch"`
	Seq    uint64 `json:"seq"`
	Market string `json:"market,omitempty"`
}

// frame has the fields of all frames that are used here; After is a number or an object, as Type says.
type frame struct {
	position
	Type, Code, Reason string
	After, Data        json.RawMessage
	Rejected           []json.RawMessage
	Start              map[string]struct {
		Complete bool
		Reason   string
	}
}

type stream interface {
	path() string
	request() any // nil: none is needed
	take(frame) error
}

type ticks struct {
	codes     []string
	positions map[string]position // by code: behind which frame to go on
}

func (t *ticks) path() string { return "/ws/realtime?ctl=1" }

func (t *ticks) request() any {
	// A code without a position begins with its last value.
	request := map[string]any{"action": "subscribe", "id": 1, "stocks": t.codes, "seq": true, "complete": true}
	if len(t.positions) > 0 {
		request["start"] = t.positions
	}
	return request
}

func (t *ticks) take(f frame) error {
	if f.Type == "gap" {
		fmt.Println("gap", f.Code, f.Reason)
	}
	for code, start := range f.Start { // of the ack: what is missing right behind a position
		if !start.Complete {
			fmt.Println("gap", code, start.Reason)
		}
	}
	if f.Type != "data" {
		return nil
	}
	var quotes map[string][]struct{ LastPrice float64 }
	if err := json.Unmarshal(f.Data, &quotes); err != nil {
		return err
	}
	for code, records := range quotes {
		if last := t.positions[code]; last.Epoch == f.Epoch && f.Seq <= last.Seq {
			continue // a last value that was here before
		}
		for _, record := range records {
			fmt.Println("tick", code, f.Epoch, f.Seq, record.LastPrice)
		}
		t.positions[code] = f.position
	}
	return nil
}

type trades struct {
	file       string
	seq, epoch uint64
}

func openTrades(file string) (*trades, error) {
	t := &trades{file: file} // from the first event of the journal on
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err == nil {
		_, err = fmt.Sscan(string(text), &t.seq, &t.epoch)
	}
	return t, err
}

func (t *trades) path() string {
	path := fmt.Sprintf("/ws/trade?ctl=1&after=%d", t.seq)
	if t.epoch > 0 {
		path += fmt.Sprintf("&epoch=%d", t.epoch)
	}
	return path
}

func (t *trades) request() any { return nil }

func (t *trades) take(f frame) error {
	switch {
	case f.Type == "subscribed":
		var after uint64
		if err := json.Unmarshal(f.After, &after); err != nil {
			return err
		}
		if after != t.seq {
			fmt.Println("gap trade", t.seq, "to", after)
		}
		return t.keep(after, f.Epoch)
	case f.Data == nil || f.Seq <= t.seq:
		return nil
	}
	// Into a database write the event and its position in one transaction: then nothing is ever there twice.
	fmt.Println("trade", f.Seq, f.Type)
	return t.keep(f.Seq, t.epoch)
}

func (t *trades) keep(seq, epoch uint64) error {
	t.seq, t.epoch = seq, epoch
	if err := os.WriteFile(t.file+".new", []byte(fmt.Sprintln(seq, epoch)), 0o600); err != nil {
		return err
	}
	return os.Rename(t.file+".new", t.file)
}

// follow reads one connection until it ends; opened says whether the gateway has sent a frame on it.
func follow(ctx context.Context, base string, header http.Header, s stream) (opened bool, err error) {
	conn, _, err := websocket.DefaultDialer.DialContext(ctx, base+s.path(), header)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-ctx.Done(): // ReadMessage below returns with the answer to the close, or after a second
			bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
			conn.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second))
			time.AfterFunc(time.Second, func() { conn.Close() })
		case <-ended:
		}
	}()
	if request := s.request(); request != nil {
		if err := conn.WriteJSON(request); err != nil {
			return false, err
		}
	}
	for {
		conn.SetReadDeadline(time.Now().Add(silence))
		_, text, err := conn.ReadMessage()
		if err != nil {
			return opened, err
		}
		opened = true
		var f frame
		if err := json.Unmarshal(text, &f); err != nil {
			return opened, fmt.Errorf("%w: %s", err, text)
		}
		switch {
		case f.Type == "error", f.Type == "feed", f.Type == "skipped", f.Type == "closing", len(f.Rejected) > 0:
			log.Printf("%s", text)
		}
		if err := s.take(f); err != nil {
			log.Fatal(err) // the disk, or a frame that this program does not understand
		}
	}
}

func main() {
	base := "ws://127.0.0.1:8000"
	if url := os.Getenv("QMT_BRIDGE_URL"); url != "" {
		base = url
	}
	header := http.Header{}
	if key := os.Getenv("QMT_BRIDGE_API_KEY"); key != "" {
		header.Set("Authorization", "Bearer "+key)
	}
	var s stream = &ticks{codes: []string{"600519.SH", "000001.SZ"}, positions: map[string]position{}}
	if args := os.Args[1:]; len(args) > 0 && args[0] == "trade" {
		file := "position.txt"
		if len(args) > 1 {
			file = args[1]
		}
		t, err := openTrades(file)
		if err != nil {
			log.Fatal(err)
		}
		s = t
	} else if len(args) > 0 {
		s = &ticks{codes: args, positions: map[string]position{}}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	rand.Seed(time.Now().UnixNano())
	for delay := firstDelay; ctx.Err() == nil; {
		opened, err := follow(ctx, base, header, s)
		if ctx.Err() != nil {
			return
		}
		if websocket.IsCloseError(err, 1003, 1007, 1008, 1009) {
			log.Fatal(err) // the same request would be refused again
		}
		if opened {
			delay = firstDelay
		}
		wait := delay/2 + time.Duration(rand.Int63n(int64(delay/2)))
		log.Printf("lost (%v); again in %v", err, wait.Round(time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		if delay *= 2; delay > longestDelay {
			delay = longestDelay
		}
	}
}

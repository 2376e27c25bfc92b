package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// The audit log is a chain: each line carries the hash of the line before it as
// "prev" and its own as "hash", which is always the last member. The hash is the
// SHA-256, in hexadecimal, of the line's bytes without that member:
//
//	line    {"seq":2,"time":"…",…,"prev":"5f…","hash":"a1…"}
//	hashed  {"seq":2,"time":"…",…,"prev":"5f…"}
//
// It is taken over bytes, so anybody can check a log without knowing its fields.
// It finds edits, removals and reorderings; it can't find that the end was cut
// off, or that somebody with write access computed the whole chain anew: for
// those compare the last hash with the state's.

// GenesisHash is the prev of the first event.
const GenesisHash = "0000000000000000000000000000000000000000000000000000000000000000"

// MaxEventLine bounds one line of the audit log.
const MaxEventLine = 64 << 10

// ErrBrokenChain says that a line is not what was written, or not where it was.
var ErrBrokenChain = errors.New("audit chain is broken")

// hashMember is what surrounds the hash at the end of a line.
const hashMember, lineEnd = `,"hash":"`, `"}`

// Seal returns the event as number seq after the event with the hash prev, with
// its own hash. The result is in a normal form: what it marshals to, unmarshals
// to the same.
func (e Event) Seal(seq int64, prev string) (Event, error) {
	e.Seq, e.Time, e.Prev, e.Hash = seq, e.Time.UTC(), prev, ""
	// Once through JSON, which replaces what is no UTF-8 in a way that only the
	// second marshalling is stable in.
	b, err := json.Marshal(e)
	if err != nil {
		return Event{}, fmt.Errorf("marshal event: %w", err)
	}
	var sealed Event
	if err := json.Unmarshal(b, &sealed); err != nil {
		return Event{}, fmt.Errorf("unmarshal event: %w", err)
	}
	if b, err = json.Marshal(sealed); err != nil {
		return Event{}, fmt.Errorf("marshal event: %w", err)
	}
	if len(b) > MaxEventLine-len(hashMember)-len(GenesisHash)-len(lineEnd) {
		return Event{}, fmt.Errorf("event %s of %d bytes is too large", e.Event, len(b))
	}
	sealed.Hash = hashLine(b)
	return sealed, nil
}

// Line returns a sealed event as it stands in the audit log, without newline.
func (e Event) Line() ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("marshal event: %w", err)
	}
	return b, nil
}

// ParseLine reads a line that Line made and checks its hash. Whether it follows
// the line before it is the caller's to check. Anything else than such a line is
// ErrBrokenChain.
func ParseLine(line []byte) (Event, error) {
	if len(line) > MaxEventLine {
		return Event{}, fmt.Errorf("%w: line of %d bytes", ErrBrokenChain, len(line))
	}
	at := len(line) - len(hashMember) - len(GenesisHash) - len(lineEnd)
	if at < 0 || !bytes.HasPrefix(line[at:], []byte(hashMember)) || !bytes.HasSuffix(line, []byte(lineEnd)) {
		return Event{}, fmt.Errorf("%w: no hash at the end of the line", ErrBrokenChain)
	}
	want := string(line[at+len(hashMember) : len(line)-len(lineEnd)])
	hashed := append(bytes.Clone(line[:at]), '}')
	if got := hashLine(hashed); got != want {
		return Event{}, fmt.Errorf("%w: the line's hash is %s, it says %s", ErrBrokenChain, got, strings.ToValidUTF8(want, "?"))
	}
	var e Event
	if err := json.Unmarshal(line, &e); err != nil {
		return Event{}, fmt.Errorf("%w: %w", ErrBrokenChain, err)
	}
	return e, nil
}

func hashLine(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is a Source in memory.
type source struct {
	tenant string     // of its events: other sources' events differ
	mu     sync.Mutex // guards events, err
	events []sandbox.Event
	err    error
}

func (s *source) Events(_ context.Context, after int64, limit int) ([]sandbox.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if after >= int64(len(s.events)) {
		return nil, nil
	}
	got := s.events[after:]
	return got[:min(limit, len(got))], nil
}

// add appends n events.
func (s *source) add(t *testing.T, n int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		prev := sandbox.GenesisHash
		if k := len(s.events); k > 0 {
			prev = s.events[k-1].Hash
		}
		e := sandbox.Event{
			Time: time.Date(2026, 1, 2, 3, 4, 5, len(s.events), time.UTC), Event: sandbox.EventCommandStarted,
			Tenant: s.tenant, Detail: map[string]string{"command": strings.Repeat("x", len(s.events)%7)},
		}
		sealed, err := e.Seal(int64(len(s.events)+1), prev)
		if err != nil {
			t.Fatal(err)
		}
		s.events = append(s.events, sealed)
	}
}

func newSource(t *testing.T, n int) *source {
	t.Helper()
	s := &source{}
	s.add(t, n)
	return s
}

// flush writes everything with a Writer of its own, as after a restart.
func flush(t *testing.T, s Source, path string) {
	t.Helper()
	w := NewWriter(s, path, nil)
	defer w.close()
	if err := w.Flush(t.Context()); err != nil {
		t.Fatalf("Flush: %v", err)
	}
}

func logFile(t *testing.T) string { return filepath.Join(t.TempDir(), "audit.jsonl") }

// check verifies the file and that it holds exactly n events.
func check(t *testing.T, path string, n int) {
	t.Helper()
	b := read(t, path)
	tip, err := Verify(bytes.NewReader(b))
	if err != nil || tip.Seq != int64(n) || bytes.Count(b, []byte("\n")) != n {
		t.Fatalf("Verify = %+v, %v with %d lines, want %d", tip, err, bytes.Count(b, []byte("\n")), n)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestWriterAppendsInOrder(t *testing.T) {
	s, path := newSource(t, 0), logFile(t)
	flush(t, s, path)
	check(t, path, 0)
	s.add(t, 3)
	flush(t, s, path)
	s.add(t, 2*batch+1)
	flush(t, s, path)
	flush(t, s, path)
	check(t, path, 2*batch+4)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm()&^fileMode != 0 {
		t.Errorf("mode = %v, %v, want at most %v", st.Mode(), err, os.FileMode(fileMode))
	}
}

// TestWriterResumesAfterEveryTornWrite cuts the file at every byte.
func TestWriterResumesAfterEveryTornWrite(t *testing.T) {
	s, path := newSource(t, 4), logFile(t)
	flush(t, s, path)
	whole := read(t, path)
	for cut := range len(whole) + 1 {
		write(t, path, whole[:cut])
		flush(t, s, path)
		if got := read(t, path); !bytes.Equal(got, whole) {
			t.Fatalf("cut at %d: the log is\n%s\nwant\n%s", cut, got, whole)
		}
	}
	if others, _ := filepath.Glob(path + ".*"); len(others) != 0 {
		t.Errorf("files moved aside: %v", others)
	}
}

// TestWriterOverwritesNoForeignLog: what is not this state's is kept beside it.
func TestWriterOverwritesNoForeignLog(t *testing.T) {
	longer, shorter := logFile(t), logFile(t)
	flush(t, newSource(t, 9), longer)
	gone := &source{tenant: "another"}
	gone.add(t, 3)
	flush(t, gone, shorter)
	s, path := newSource(t, 5), logFile(t)
	flush(t, s, path)
	good := read(t, path)
	tests := map[string][]byte{
		"with more than the state":  read(t, longer),
		"of a state that is gone":   read(t, shorter),
		"with an edited last line":  append(bytes.Clone(good[:len(good)-100]), append(bytes.Repeat([]byte("x"), 99), '\n')...),
		"with text at the end":      append(bytes.Clone(good), "somebody was here\n"...),
		"with NULs at the end":      append(bytes.Clone(good), make([]byte, 100)...),
		"without a line":            []byte("hello"),
		"of one very long line":     bytes.Repeat([]byte("x"), 3*sandbox.MaxEventLine),
		"of one very long last one": append(bytes.Clone(good), append([]byte(`{"seq":`), bytes.Repeat([]byte("1"), 3*sandbox.MaxEventLine)...)...),
	}
	for name, content := range tests {
		t.Run(name, func(t *testing.T) {
			path := logFile(t)
			write(t, path+".1", []byte("an older one"))
			write(t, path, content)
			flush(t, s, path)
			check(t, path, 5)
			if got := read(t, path+".2"); !bytes.Equal(got, content) {
				t.Errorf("moved aside: %d bytes, want %d unchanged", len(got), len(content))
			}
			if got := read(t, path+".1"); string(got) != "an older one" {
				t.Errorf("the older one is now %q", got)
			}
		})
	}
}

func TestWriterRefusesLinksAndSecondWriters(t *testing.T) {
	s, path := newSource(t, 1), logFile(t)
	w := NewWriter(s, path, nil)
	defer w.close()
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := NewWriter(s, path, nil)
	if err := second.Flush(t.Context()); err == nil {
		t.Error("a second writer was let in")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := NewWriter(s, link, nil).Flush(t.Context()); err == nil {
		t.Error("a link was followed")
	}
}

func TestWriterWritesNothingThatBreaksTheChain(t *testing.T) {
	s, path := newSource(t, 3), logFile(t)
	s.events[2].Reason = "edited in the state"
	w := NewWriter(s, path, nil)
	defer w.close()
	if err := w.Flush(t.Context()); !errors.Is(err, sandbox.ErrBrokenChain) {
		t.Errorf("Flush = %v, want %v", err, sandbox.ErrBrokenChain)
	}
}

// start runs a Writer until the returned function is called.
func start(t *testing.T, w *Writer) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

// eventually polls until ok, at most for some seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

func lines(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return -1
	}
	return bytes.Count(b, []byte("\n"))
}

func TestRunWritesAtStartOnNotifyAndAtTheEnd(t *testing.T) {
	s, path := newSource(t, 2), logFile(t)
	w := NewWriter(s, path, nil)
	stop := start(t, w)
	eventually(t, "the write at the start", func() bool { return lines(path) == 2 })
	s.add(t, 1)
	w.Notify()
	eventually(t, "the write on Notify", func() bool { return lines(path) == 3 })
	s.add(t, 1)
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	check(t, path, 4)
}

func TestRunStartsAnewWhenTheFileIsMovedOrCut(t *testing.T) {
	s, path := newSource(t, 2), logFile(t)
	w := NewWriter(s, path, nil)
	stop := start(t, w)
	eventually(t, "the first write", func() bool { return lines(path) == 2 })
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	s.add(t, 1)
	w.Notify()
	eventually(t, "the write after a move", func() bool { return lines(path) == 3 })
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
	w.Notify()
	eventually(t, "the write after a cut", func() bool { return lines(path) == 3 })
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	check(t, path, 3)
}

func TestRunGoesOnAfterAFailureAndLogsItOnce(t *testing.T) {
	s, path := newSource(t, 2), logFile(t)
	s.err = errors.New("no state")
	var logged syncBuffer
	stop := start(t, NewWriter(s, path, slog.New(slog.NewTextHandler(&logged, nil))))
	eventually(t, "the failure", func() bool { return strings.Contains(logged.String(), "no state") })
	s.mu.Lock()
	s.err = nil
	s.mu.Unlock()
	eventually(t, "the retry", func() bool { return lines(path) == 2 })
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if n := strings.Count(logged.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors logged, want 1:\n%s", n, logged.String())
	}
}

type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestVerify(t *testing.T) {
	s, path := newSource(t, 5), logFile(t)
	flush(t, s, path)
	good := bytes.SplitAfter(read(t, path), []byte("\n"))[:5]
	other, otherPath := &source{tenant: "another"}, logFile(t)
	other.add(t, 5)
	flush(t, other, otherPath)
	foreign := bytes.SplitAfter(read(t, otherPath), []byte("\n"))
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	tests := []struct {
		name string
		log  []byte
		line int // of the error, 0 for none
	}{
		{"whole", join(good...), 0},
		{"empty", nil, 0},
		{"edited", bytes.Replace(join(good...), []byte("command.started"), []byte("command.starteD"), 1), 1},
		{"edited in the middle", join(good[0], bytes.Replace(good[1], []byte(`"command":"x"`), []byte(`"command":"y"`), 1), good[2]), 2},
		{"member added", join(good[0], bytes.Replace(good[1], []byte(`{`), []byte(`{"x":1,`), 1)), 2},
		{"hash replaced by another's", join(good[0], append(bytes.Clone(good[1][:len(good[1])-67]), good[2][len(good[2])-67:]...)), 2},
		{"removed at the beginning", join(good[1:]...), 1},
		{"removed in the middle", join(good[0], good[2]), 2},
		{"swapped", join(good[0], good[2], good[1]), 2},
		{"twice", join(good[0], good[1], good[1]), 3},
		{"empty line", join(good[0], []byte("\n"), good[1]), 2},
		{"of another log", join(good[0], foreign[1]), 2},
		{"torn", join(good[0], good[1][:20]), 2},
		{"no newline at the end", join(good[0], bytes.TrimSpace(good[1])), 2},
		{"long line", join(good[0], bytes.Repeat([]byte("x"), 2*sandbox.MaxEventLine)), 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Verify(bytes.NewReader(tt.log))
			if tt.line == 0 {
				if err != nil {
					t.Errorf("Verify = %v, want no error", err)
				}
				return
			}
			if !errors.Is(err, sandbox.ErrBrokenChain) || !strings.HasPrefix(err.Error(), fmt.Sprintf("line %d: ", tt.line)) {
				t.Errorf("Verify = %v, want %v in line %d", err, sandbox.ErrBrokenChain, tt.line)
			}
		})
	}
	// A cut end is no broken chain: the tip tells.
	tip, err := Verify(bytes.NewReader(join(good[:4]...)))
	if err != nil || tip == (Tip{Seq: 5, Hash: s.events[4].Hash}) {
		t.Errorf("Verify of a cut log = %+v, %v, want another tip", tip, err)
	}
}

func FuzzVerifyNeverPanics(f *testing.F) {
	s := &source{}
	e, err := (sandbox.Event{Event: "x"}).Seal(1, sandbox.GenesisHash)
	if err != nil {
		f.Fatal(err)
	}
	s.events = append(s.events, e)
	line, err := e.Line()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(line, '\n'))
	f.Add([]byte(`,"hash":"` + sandbox.GenesisHash + `"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tip, err := Verify(bytes.NewReader(b)); err == nil && len(b) > 0 && tip.Seq != int64(bytes.Count(b, []byte("\n"))) {
			t.Errorf("Verify = %+v for %d lines", tip, bytes.Count(b, []byte("\n")))
		}
	})
}

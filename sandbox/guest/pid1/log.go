package pid1

import (
	"io"
	"os"
	"os/signal"
	"syscall"
)

// logWriter passes lines on as long as somebody reads them and drops them
// otherwise. PID 1's stderr belongs to the container engine: when that goes away,
// a full pipe must not stop PID 1, and a broken one must not kill it.
type logWriter chan []byte

// newLogWriter starts the goroutine that writes; it lives as long as PID 1.
func newLogWriter(w io.Writer) logWriter {
	// With a handler (not ignored: children would inherit that) writing to a broken
	// stderr is an error instead of the end.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	l := make(logWriter, 64) // lines of a burst
	go func() {
		for line := range l {
			_, _ = w.Write(line) // there is nobody to tell
		}
	}()
	return l
}

func (l logWriter) Write(p []byte) (int, error) {
	select {
	case l <- append([]byte(nil), p...):
	default:
	}
	return len(p), nil
}

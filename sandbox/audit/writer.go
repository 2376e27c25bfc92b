package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

const (
	batch      = 200              // events a read
	pollEvery  = 10 * time.Second // finds what other processes appended
	retryFirst = time.Second      // after a failure, doubling
	retryMost  = 30 * time.Second
	lastWords  = 5 * time.Second // for what is left when Run's ctx ends
)

// Source is where the events come from; sandbox.Store has it.
type Source interface {
	// Events returns at most limit events with Seq > after, in order.
	Events(ctx context.Context, after int64, limit int) ([]sandbox.Event, error)
}

// Writer appends the events of a Source to a file. Make one with [NewWriter].
// Notify is safe for concurrent use; Run is called once.
type Writer struct {
	source Source
	path   string
	log    *slog.Logger
	kick   chan struct{} // capacity 1: there is something new

	// Only Run's goroutine uses these.
	file *os.File
	size int64 // of the complete lines in file
	tip  Tip
}

// NewWriter returns a Writer for the file at path, whose folder must exist. A nil
// log discards.
func NewWriter(source Source, path string, log *slog.Logger) *Writer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Writer{source: source, path: path, log: log, kick: make(chan struct{}, 1)}
}

// Notify says that there may be new events. It does not block.
func (w *Writer) Notify() {
	select {
	case w.kick <- struct{}{}:
	default: // one is pending, and it will see these events too
	}
}

// Run appends what is missing, then whatever comes, until ctx ends, and then once
// more. Failures are logged and tried again: the events stay in the state. Its
// error is that of the last attempt.
func (w *Writer) Run(ctx context.Context) error {
	defer w.close()
	retry := retryFirst
	failing := false
	for {
		wait := pollEvery
		switch err := w.Flush(ctx); {
		case err == nil && failing:
			w.log.InfoContext(ctx, "audit log is written again", "path", w.path)
			failing, retry = false, retryFirst
		case err == nil:
		case ctx.Err() != nil: // below
		default:
			if !failing {
				w.log.ErrorContext(ctx, "audit log can't be written; the events are kept in the state", "path", w.path, "err", err)
			}
			failing, wait = true, retry
			retry = min(2*retry, retryMost)
		}
		timer := time.NewTimer(wait)
		kick := w.kick
		if failing {
			kick = nil // a full disk is not asked again for every event
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
			return w.Flush(last)
		case <-kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Flush appends everything that the source has and the file has not, and makes it
// durable. It is for Run and for programs that write once; it is not safe beside Run.
func (w *Writer) Flush(ctx context.Context) error {
	if err := w.open(ctx); err != nil {
		return err
	}
	for {
		events, err := w.source.Events(ctx, w.tip.Seq, batch)
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if len(events) == 0 {
			return nil
		}
		if err := w.append(events); err != nil {
			return err
		}
	}
}

// append writes events in one write. When that fails the file is cut back to the
// last complete line: what was not made durable is written again.
func (w *Writer) append(events []sandbox.Event) error {
	var b bytes.Buffer
	tip := w.tip
	for _, e := range events {
		line, err := e.Line()
		if err != nil {
			return err
		}
		// What comes out of the state is checked like what comes out of a file.
		checked, err := sandbox.ParseLine(line)
		if err != nil {
			return fmt.Errorf("event %d of the state: %w", e.Seq, err)
		}
		if tip, err = follow(tip, checked); err != nil {
			return fmt.Errorf("event %d of the state: %w", e.Seq, err)
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	_, err := w.file.WriteAt(b.Bytes(), w.size)
	if err == nil {
		err = w.file.Sync()
	}
	if err != nil {
		err = fmt.Errorf("write audit log: %w", err)
		// Whatever the state of the file, the next Flush opens it anew and looks.
		return errors.Join(err, w.file.Truncate(w.size), w.close())
	}
	w.size += int64(b.Len())
	w.tip = tip
	return nil
}

func (w *Writer) close() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file, w.size, w.tip = nil, 0, Tip{}
	return err
}

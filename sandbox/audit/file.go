package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/podspawn/podspawn/sandbox"
)

// fileMode lets a group that an administrator gives the file to read it.
const fileMode = 0o640

// open sees to it that w.file is the file at the path and that w.tip is its last
// line. A last line that a crash tore is cut off. A file that does not end in an
// event of this state (the state was removed and begun anew, or somebody wrote in
// the file) is moved aside, never overwritten, and a new one begun.
func (w *Writer) open(ctx context.Context) error {
	if w.file != nil && w.stillThere() {
		return nil
	}
	if err := w.close(); err != nil {
		return fmt.Errorf("close audit log: %w", err)
	}
	for range 2 {
		f, err := openLocked(w.path)
		if err != nil {
			return err
		}
		size, tip, err := lastLine(f)
		if err == nil {
			err = w.known(ctx, tip)
		}
		switch {
		case err == nil:
			if err := f.Truncate(size); err != nil {
				return errors.Join(fmt.Errorf("cut off a torn line: %w", err), f.Close())
			}
			w.file, w.size, w.tip = f, size, tip
			return nil
		case errors.Is(err, sandbox.ErrBrokenChain):
			aside, moveErr := moveAside(w.path)
			if moveErr != nil {
				return errors.Join(err, moveErr, f.Close())
			}
			w.log.ErrorContext(ctx, "audit log is not this state's or was changed; it was moved aside",
				"path", w.path, "to", aside, "err", err)
			if err := f.Close(); err != nil {
				return fmt.Errorf("close audit log: %w", err)
			}
		default:
			return errors.Join(err, f.Close())
		}
	}
	return fmt.Errorf("%s changes under us", w.path)
}

// stillThere reports whether nobody moved, removed or truncated the file.
func (w *Writer) stillThere() bool {
	have, err := w.file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(w.path)
	return err == nil && os.SameFile(have, there) && have.Size() == w.size
}

// known checks that the state has the event of the tip.
func (w *Writer) known(ctx context.Context, tip Tip) error {
	if tip.Seq == 0 {
		return nil
	}
	events, err := w.source.Events(ctx, tip.Seq-1, 1)
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	if len(events) == 0 || events[0].Seq != tip.Seq || events[0].Hash != tip.Hash {
		return fmt.Errorf("%w: the state has no such event %d", sandbox.ErrBrokenChain, tip.Seq)
	}
	return nil
}

// openLocked opens the log for this process alone: two writers would each append
// the same events.
func openLocked(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err == nil {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			err = fmt.Errorf("lock audit log (does another daemon write it?): %w", err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lastLine returns the tip of the last complete line and where it ends. It looks
// at no more than the end of the file: the whole chain is Verify's to check.
func lastLine(f *os.File) (end int64, tip Tip, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, Tip{}, fmt.Errorf("read audit log: %w", err)
	}
	// A torn line and the complete one before it.
	from := max(0, st.Size()-2*(sandbox.MaxEventLine+1))
	tail := make([]byte, st.Size()-from)
	if _, err := io.ReadFull(io.NewSectionReader(f, from, st.Size()-from), tail); err != nil {
		return 0, Tip{}, fmt.Errorf("read audit log: %w", err)
	}
	nl := bytes.LastIndexByte(tail, '\n')
	if torn := tail[nl+1:]; !mayBeTorn(torn) {
		return 0, Tip{}, fmt.Errorf("%w: its end is no part of a line", sandbox.ErrBrokenChain)
	}
	if nl < 0 {
		if from > 0 {
			return 0, Tip{}, fmt.Errorf("%w: its end has no line", sandbox.ErrBrokenChain)
		}
		return 0, Tip{}, nil // empty, or the first line is torn
	}
	line := tail[bytes.LastIndexByte(tail[:nl], '\n')+1 : nl]
	e, err := sandbox.ParseLine(line)
	if err != nil {
		return 0, Tip{}, err
	}
	return from + int64(nl) + 1, Tip{Seq: e.Seq, Hash: e.Hash}, nil
}

// mayBeTorn reports whether b can be the beginning of a line that a crash cut off.
func mayBeTorn(b []byte) bool {
	beginning := []byte(`{"seq":`)
	return bytes.HasPrefix(b, beginning) || bytes.HasPrefix(beginning, b)
}

// moveAside renames the log to the first free PATH.N and returns that name. Link
// and not rename, which would overwrite.
func moveAside(path string) (string, error) {
	for n := 1; n < 10_000; n++ {
		aside := fmt.Sprintf("%s.%d", path, n)
		err := os.Link(path, aside)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("move audit log aside: %w", err)
		}
		if err := os.Remove(path); err != nil {
			return "", fmt.Errorf("move audit log aside: %w", err)
		}
		return aside, nil
	}
	return "", fmt.Errorf("move audit log aside: %s.1 to .9999 exist", path)
}

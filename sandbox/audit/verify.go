package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/podspawn/podspawn/sandbox"
)

// Tip is the last line of a chain: compare it with the state's to see whether
// the end was cut off. The zero Tip is that of an empty log.
type Tip struct {
	Seq  int64
	Hash string
}

// Verify reads a whole log and returns its tip. An edited, removed, inserted or
// reordered line is a sandbox.ErrBrokenChain that names the line; so is a last
// line without a newline.
func Verify(r io.Reader) (Tip, error) {
	var tip Tip
	in := bufio.NewReaderSize(r, sandbox.MaxEventLine+1)
	for n := 1; ; n++ {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return tip, nil
		case errors.Is(err, io.EOF):
			return tip, fmt.Errorf("line %d: %w: it ends in the middle", n, sandbox.ErrBrokenChain)
		case errors.Is(err, bufio.ErrBufferFull):
			return tip, fmt.Errorf("line %d: %w: it is too long", n, sandbox.ErrBrokenChain)
		case err != nil:
			return tip, fmt.Errorf("read audit log: %w", err)
		}
		e, err := sandbox.ParseLine(line[:len(line)-1])
		if err != nil {
			return tip, fmt.Errorf("line %d: %w", n, err)
		}
		if tip, err = follow(tip, e); err != nil {
			return tip, fmt.Errorf("line %d: %w", n, err)
		}
	}
}

// follow checks that e is the event after tip, and returns its own tip.
func follow(tip Tip, e sandbox.Event) (Tip, error) {
	prev := tip.Hash
	if tip.Seq == 0 {
		prev = sandbox.GenesisHash
	}
	if e.Seq != tip.Seq+1 {
		return tip, fmt.Errorf("%w: event %d follows event %d", sandbox.ErrBrokenChain, e.Seq, tip.Seq)
	}
	if e.Prev != prev {
		return tip, fmt.Errorf("%w: event %d does not follow what stands before it", sandbox.ErrBrokenChain, e.Seq)
	}
	return Tip{Seq: e.Seq, Hash: e.Hash}, nil
}

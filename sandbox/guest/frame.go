package guest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// HeaderSize is what a frame has in front of its payload.
const HeaderSize = 5

// Errors of the codec. Both mean that the other side does not keep to the
// protocol, and that the connection is of no further use.
var (
	ErrTooLong = errors.New("frame exceeds its bound")
	ErrUnknown = errors.New("frame of an unknown type")
)

// Reader reads frames. What it holds in memory is bounded whatever it reads:
// one buffer of MaxPayload, and MaxRequest more for the one request that a
// server asks for. It is not safe for concurrent use.
type Reader struct {
	br   *bufio.Reader
	last int // size of the frame that Next returned, still in br
}

// NewReader returns a Reader of r. It reads ahead: from then on nobody else may
// read from r.
func NewReader(r io.Reader) *Reader {
	return &Reader{br: bufio.NewReaderSize(r, HeaderSize+MaxPayload)}
}

// Next returns the next frame. The payload is valid until the following call.
// The end of the stream is io.EOF between two frames and io.ErrUnexpectedEOF
// within one.
func (r *Reader) Next() (FrameType, []byte, error) {
	if r.last > 0 {
		if _, err := r.br.Discard(r.last); err != nil {
			return 0, nil, err // can't happen: Peek saw these bytes
		}
		r.last = 0
	}
	t, n, err := r.header()
	if err != nil {
		return 0, nil, err
	}
	if n > MaxPayload {
		return 0, nil, fmt.Errorf("%w: %d bytes of type %q", ErrTooLong, n, byte(t))
	}
	b, err := r.br.Peek(HeaderSize + n)
	if err != nil {
		return 0, nil, cut(err)
	}
	r.last = len(b)
	return t, b[HeaderSize:], nil
}

// Opening reads the frame that opens a connection: FrameRequest, the only one
// that may be longer than MaxPayload, or another that may come first. It has to be
// the first call on a Reader.
func (r *Reader) Opening() (FrameType, []byte, error) {
	t, n, err := r.header()
	if err != nil {
		return 0, nil, err
	}
	switch t {
	case FrameRequest:
	case FrameDial, FrameListen, FrameAccept:
		if n > maxOpening {
			return 0, nil, fmt.Errorf("%w: %d bytes of type %q", ErrTooLong, n, byte(t))
		}
	default:
		return 0, nil, fmt.Errorf("%w: %q instead of a request", ErrUnknown, byte(t))
	}
	if n > MaxRequest {
		return 0, nil, fmt.Errorf("%w: request of %d bytes", ErrTooLong, n)
	}
	if _, err := r.br.Discard(HeaderSize); err != nil {
		return 0, nil, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.br, b); err != nil {
		return 0, nil, cut(err)
	}
	return t, b, nil
}

// Request is Opening where only a FrameRequest may come.
func (r *Reader) Request() ([]byte, error) {
	t, b, err := r.Opening()
	if err == nil && t != FrameRequest {
		err = fmt.Errorf("%w: %q instead of a request", ErrUnknown, byte(t))
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// maxOpening bounds the frames for forwarding.
const maxOpening = 1 << 10

// Rest returns the bytes that follow the frames that were read and were already
// taken from the connection. The Reader is of no further use.
func (r *Reader) Rest() ([]byte, error) {
	b := make([]byte, r.br.Buffered())
	_, err := io.ReadFull(r.br, b)
	return b, err
}

// header peeks at type and length.
func (r *Reader) header() (FrameType, int, error) {
	h, err := r.br.Peek(HeaderSize)
	if err != nil {
		if len(h) > 0 {
			err = cut(err)
		}
		return 0, 0, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > MaxRequest { // before the conversion to int
		return 0, 0, fmt.Errorf("%w: %d bytes of type %q", ErrTooLong, n, h[0])
	}
	return FrameType(h[0]), int(n), nil
}

// cut turns an end of stream that came too early into what it is.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Writer writes frames, each with one call of Write. It is safe for concurrent
// use. After an error the stream is broken and every call fails.
type Writer struct {
	mu  sync.Mutex // guards w, buf and err
	w   io.Writer
	buf []byte
	err error
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Frame writes one frame, which it copies.
func (w *Writer) Frame(t FrameType, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf[:0], 0, 0, 0, 0, 0)
	w.buf = append(w.buf, payload...)
	err := w.send(t, w.buf)
	if cap(w.buf) > MaxPayload {
		w.buf = nil // a request is sent once
	}
	return err
}

// InPlace writes the frame whose payload is buf[HeaderSize:] and puts the
// header into the room before it, so that bulk data is not copied.
func (w *Writer) InPlace(t FrameType, buf []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.send(t, buf)
}

func (w *Writer) send(t FrameType, buf []byte) error {
	if w.err != nil {
		return w.err
	}
	n, limit := len(buf)-HeaderSize, MaxPayload
	if t == FrameRequest {
		limit = MaxRequest
	}
	if n > limit {
		return fmt.Errorf("%w: %d bytes of type %q", ErrTooLong, n, byte(t))
	}
	buf[0] = byte(t)
	binary.BigEndian.PutUint32(buf[1:HeaderSize], uint32(n))
	_, w.err = w.w.Write(buf)
	return w.err
}

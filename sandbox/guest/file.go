package guest

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"time"
	"unicode/utf8"
)

// Bounds of operations on files.
const (
	MaxPath        = 4096
	MaxFileAnswer  = 2 << 20 // bytes of a FileAnswer
	MaxFileEntries = 2000    // of a listing
	MaxTarEntries  = 200_000
	MaxFileBytes   = 4 << 30 // of one file or one archive
)

// Op names an operation on files.
type Op string

// The operations. All paths are the sandbox's, resolved by its own kernel with
// the rights of the user; relative ones start in the working directory.
const (
	OpStat   Op = "stat"
	OpList   Op = "list"
	OpRead   Op = "read"   // a regular file's bytes, or a folder as a tar archive
	OpWrite  Op = "write"  // replace a file as a whole
	OpUnpack Op = "unpack" // a tar archive into a folder
	OpDelete Op = "delete"
)

// Writes reports whether o changes anything.
func (o Op) Writes() bool { return o != OpStat && o != OpList && o != OpRead }

// FileOp is one operation. Its process writes a FileAnswer as one line of JSON
// on stdout, OpRead then the bytes. OpWrite and OpUnpack read their data from
// stdin, in the chunks of ChunkReader, and answer afterwards.
type FileOp struct {
	Op   Op     `json:"op"`
	Path string `json:"path"`
	// Offset and Length select bytes of OpRead; Length 0 is all the rest. A negative
	// Offset counts from the end.
	Offset int64  `json:"offset,omitempty"`
	Length int64  `json:"length,omitempty"`
	Mode   uint32 `json:"mode,omitempty"` // OpWrite: permission bits; 0 keeps those of a file that is there, else 0644
	// Recursive lets OpDelete remove a folder that is not empty.
	Recursive bool `json:"recursive,omitempty"`
}

// FileKind is what an entry is.
type FileKind string

// The kinds.
const (
	KindFile  FileKind = "file"
	KindDir   FileKind = "dir"
	KindLink  FileKind = "link"
	KindOther FileKind = "other" // fifo, socket, device
)

// FileInfo describes one entry.
type FileInfo struct {
	Name     string    `json:"name"` // base name
	Kind     FileKind  `json:"kind"`
	Size     int64     `json:"size"`
	Mode     uint32    `json:"mode"` // permission bits
	Modified time.Time `json:"modified"`
	Target   string    `json:"target,omitempty"` // of a link
}

// FileErrorCode is why an operation failed, for whoever acts on it.
type FileErrorCode string

// The codes.
const (
	FileNotFound FileErrorCode = "not_found"
	FileDenied   FileErrorCode = "denied"
	FileInvalid  FileErrorCode = "invalid" // of this kind of file, or with these arguments
	FileTooLarge FileErrorCode = "too_large"
	FileNoSpace  FileErrorCode = "no_space"
	FileFailed   FileErrorCode = "failed"
)

// FileAnswer is what became of an operation.
type FileAnswer struct {
	Error   FileErrorCode `json:"error,omitempty"`
	Message string        `json:"message,omitempty"`

	Info      *FileInfo  `json:"info,omitempty"`
	Entries   []FileInfo `json:"entries,omitempty"`
	Truncated bool       `json:"truncated,omitempty"` // there are more entries
	Offset    int64      `json:"offset,omitempty"`    // OpRead: where the bytes begin
	Length    int64      `json:"length,omitempty"`    // OpRead of a file: how many follow; OpWrite, OpUnpack: bytes written
	Count     int        `json:"count,omitempty"`     // OpUnpack, OpDelete: entries
}

// Check refuses what no sandbox can carry out.
func (o FileOp) Check() error {
	switch o.Op {
	case OpStat, OpList, OpRead, OpWrite, OpUnpack, OpDelete:
	default:
		return errors.New("unknown operation")
	}
	switch {
	case o.Path == "":
		return errors.New("the path is empty")
	case len(o.Path) > MaxPath:
		return fmt.Errorf("the path exceeds %d bytes", MaxPath)
	case !utf8.ValidString(o.Path):
		return errors.New("the path is not UTF-8")
	case o.Length < 0 || o.Mode > 0o777:
		return errors.New("a number is out of range")
	}
	for _, c := range []byte(o.Path) {
		if c == 0 {
			return errors.New("the path contains a zero byte")
		}
	}
	if o.Op == OpDelete && path.Clean("/"+o.Path) == "/" {
		return errors.New("the root folder can't be deleted")
	}
	return nil
}

// ReadFileAnswer reads the answer of a file operation's process from the start
// of its output. It trusts the sender with nothing: the line is bounded and names
// and messages are made printable where they are shown.
func ReadFileAnswer(r *bufio.Reader) (FileAnswer, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > MaxFileAnswer {
			return FileAnswer{}, fmt.Errorf("%w: answer of a file operation", ErrTooLong)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return FileAnswer{}, fmt.Errorf("answer of a file operation: %w", cut(err))
		}
	}
	var a FileAnswer
	if err := json.Unmarshal(line, &a); err != nil {
		return FileAnswer{}, fmt.Errorf("answer of a file operation: %w", err)
	}
	if len(a.Entries) > MaxFileEntries || a.Length < 0 || a.Offset < 0 || a.Info != nil && a.Info.Size < 0 {
		return FileAnswer{}, fmt.Errorf("%w: answer of a file operation", ErrTooLong)
	}
	a.Message = printable(a.Message)
	return a, nil
}

// ChunkReader frames what r gives, so that its end is told apart from a breach:
// four bytes of length before each chunk, and a chunk of none at the end. An error of
// r ends the stream without that.
func ChunkReader(r io.Reader) io.Reader { return &chunkReader{r: r} }

type chunkReader struct {
	r    io.Reader
	buf  [4 + chunk]byte
	rest []byte
	err  error
}

func (c *chunkReader) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		n, err := c.r.Read(c.buf[4:])
		switch {
		case err == io.EOF && n == 0:
			c.rest, c.err = c.buf[:4], io.EOF
		case err != nil && err != io.EOF:
			c.err = err
			return 0, err
		case n == 0:
			continue
		default:
			c.rest = c.buf[:4+n]
		}
		binary.BigEndian.PutUint32(c.buf[:4], uint32(n))
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// UnchunkReader undoes ChunkReader. A stream that breaks off is
// io.ErrUnexpectedEOF, never io.EOF.
func UnchunkReader(r io.Reader) io.Reader { return &unchunkReader{r: bufio.NewReaderSize(r, 4+chunk)} }

type unchunkReader struct {
	r    *bufio.Reader
	left int
	done bool
}

func (u *unchunkReader) Read(p []byte) (int, error) {
	if u.done {
		return 0, io.EOF
	}
	if u.left == 0 {
		var size [4]byte
		if _, err := io.ReadFull(u.r, size[:]); err != nil {
			return 0, cut(err)
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > chunk {
			return 0, fmt.Errorf("%w: chunk of %d bytes", ErrTooLong, n)
		}
		if n == 0 {
			u.done = true
			return 0, io.EOF
		}
		u.left = int(n)
	}
	n, err := u.r.Read(p[:min(len(p), u.left)])
	u.left -= n
	if err != nil {
		err = cut(err)
	}
	return n, err
}

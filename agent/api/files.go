package api

import (
	"context"
	"io"
	"time"
)

// Files is what a caller can do with a sandbox's files. Paths are the sandbox's
// own, resolved inside it as its user; relative ones start in its workspace.
type Files interface {
	// OpenFile opens a file, or a folder as a tar archive. The caller closes Body; a
	// Read error other than io.EOF means that the rest is missing.
	OpenFile(ctx context.Context, ref string, r FileRange) (FileContent, error)
	// WriteFile replaces a file as a whole, or unpacks a tar archive into a folder. It
	// reads r.Body to its end and does not close it. When Body fails nothing of the file
	// is written; of an archive what came before stays.
	WriteFile(ctx context.Context, ref string, r FileWrite) (FileWritten, error)
	ListFiles(ctx context.Context, ref, path string) (FileList, error)
	DeleteFile(ctx context.Context, ref, path string, recursive bool) error
}

// FileRange selects bytes of a file; Length 0 is all the rest, a negative Offset
// counts from the end. For a folder both are ignored.
type FileRange struct {
	Path   string
	Offset int64
	Length int64
}

// FileContent is an open file. Length is −1 for a folder's archive.
type FileContent struct {
	Info      FileInfo
	Offset    int64
	Length    int64
	ExpiresAt time.Time // of the sandbox
	Body      io.ReadCloser
}

// FileWrite says where Body goes.
type FileWrite struct {
	Path string
	Mode uint32 // permission bits; 0 keeps those of a file that is there, else 0644
	Tar  bool   // Body is a tar archive and Path the folder to unpack it into
	Body io.Reader
}

// FileInfo is one entry of a folder.
type FileInfo struct {
	Name     string    `json:"name"`
	Type     string    `json:"type"` // file, dir, link, other
	Size     int64     `json:"size"`
	Mode     string    `json:"mode"` // octal permission bits, such as 0644
	Modified time.Time `json:"modified"`
	Target   string    `json:"target,omitempty"` // of a link
}

// FileList is the body of GET …/files/list.
type FileList struct {
	Path      string     `json:"path"`
	Entries   []FileInfo `json:"entries"`
	Truncated bool       `json:"truncated"` // there are more
	ExpiresAt time.Time  `json:"expires_at"`
}

// FileWritten is the answer of PUT …/files.
type FileWritten struct {
	Path      string    `json:"path"`
	Size      int64     `json:"size"`
	Mode      string    `json:"mode,omitempty"`
	Entries   int       `json:"entries"` // of an archive
	ExpiresAt time.Time `json:"expires_at"`
}

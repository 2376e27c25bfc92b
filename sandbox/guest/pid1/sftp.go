package pid1

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pkg/sftp"
)

// sftpMain is the SFTP server for images that have none. It runs as a process of
// its own with the user's credentials, like any other server for the subsystem, so that
// the sandbox's kernel decides which files it may touch. Its paths are the
// sandbox's, links included: there is nothing else in there to protect.
func sftpMain(stdio Stdio) int {
	// Relative paths are left to the kernel: the server would also rewrite the
	// targets of links if it were told the working directory.
	s, err := sftp.NewServer(pipes{stdio.In, stdio.Out})
	if err == nil {
		err = s.Serve()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintf(stdio.Err, "podspawn-guest: error: sftp: %v\n", err)
		return codeFailed
	}
	return codeOK
}

// pipes is the server's connection: stdin and stdout.
type pipes struct {
	io.Reader
	out *os.File
}

func (p pipes) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p pipes) Close() error                { return p.out.Close() }

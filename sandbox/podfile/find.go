package podfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/podspawn/podspawn/sandbox"
)

// Find returns the Podfile of a folder.
func Find(dir string) (string, error) {
	for _, name := range []string{"podfile.yaml", ".podspawn/podfile.yaml"} {
		path := filepath.Join(dir, name)
		if ok, err := exists(path); ok || err != nil {
			return path, err
		}
	}
	for _, name := range []string{".devcontainer/devcontainer.json", ".devcontainer.json"} {
		if ok, err := exists(filepath.Join(dir, name)); err != nil {
			return "", err
		} else if ok {
			return "", sandbox.Errorf(sandbox.KindInvalidSpec, "write a podfile.yaml beside it, or name an image with --image",
				"%s: not supported yet by this version", name)
		}
	}
	return "", sandbox.Errorf(sandbox.KindNotFound, "write a podfile.yaml, name one with -f, or name an image with --image",
		"no podfile.yaml in %s", dir)
}

func exists(path string) (bool, error) {
	switch _, err := os.Stat(path); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("look for a podfile: %w", err)
	}
}

// ReadFile reads a Podfile's text, at most MaxSize of it.
func ReadFile(path string) (data []byte, err error) {
	// Non-blocking: opening a pipe must not wait for somebody to write to it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, sandbox.Errorf(sandbox.KindNotFound, "check the path", "there is no podfile %s", quote(path))
	}
	if err != nil {
		return nil, fmt.Errorf("read podfile: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read podfile: %w", err)
	}
	if !st.Mode().IsRegular() { // a pipe or device would be read without end
		return nil, sandbox.Errorf(sandbox.KindInvalidSpec, "name a file", "podfile %s is no regular file", quote(path))
	}
	data, err = io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read podfile: %w", err)
	}
	if len(data) > MaxSize {
		return nil, refuse(0, "make it shorter", "larger than %d KiB", MaxSize>>10)
	}
	return data, nil
}

package ephemeralkeys

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

const maxKeyFile = 16 << 10

// LoadOrCreateCA loads the CA whose private key is in the file, or makes an
// Ed25519 one there (0400), and writes path + ".pub" (0644) when it is missing or
// another key's. It never replaces a private key: of several processes that start
// at once one creates, and all have the same key. The comment is that of a new
// key. Errors that wrap [ErrKeyFile] need a person.
func LoadOrCreateCA(path, comment string) (ca *CA, created bool, err error) {
	ca, err = LoadCA(path)
	if errors.Is(err, fs.ErrNotExist) {
		switch err = createKey(path, comment); {
		case err == nil:
			created = true
		case !errors.Is(err, fs.ErrExist):
			return nil, false, fmt.Errorf("create key %s: %w", path, err)
		}
		ca, err = LoadCA(path)
	}
	if err != nil {
		return nil, false, err
	}
	if ca.comment == "" {
		ca.comment = oneLine(comment)
	}
	if !publicFileMatches(path, ca.public) {
		if err := WriteFileAtomic(path+".pub", []byte(ca.AuthorizedKey()+"\n"), 0o644); err != nil {
			return nil, false, fmt.Errorf("write public key: %w", err)
		}
	}
	return ca, created, nil
}

// LoadCA loads the CA whose private key, in a form that ssh-keygen writes and
// without a passphrase, is in the file. The file must belong to the effective
// user, who alone may read it. A missing file is fs.ErrNotExist.
func LoadCA(path string) (*CA, error) {
	text, err := readPrivateFile(path)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		if _, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok {
			return nil, fmt.Errorf("%w: %s has a passphrase, which nobody could type here; use an agent or a key without one", ErrKeyFile, path)
		}
		return nil, fmt.Errorf("%w: %s holds no private key that can be read", ErrKeyFile, path)
	}
	if err := checkKey(signer.PublicKey()); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKeyFile, path, err)
	}
	ca := NewCA(signer)
	if key, comment := readPublicFile(path); key != nil && bytes.Equal(key.Marshal(), ca.public.Marshal()) {
		ca.comment = comment
	}
	return ca, nil
}

func createKey(path, comment string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(key, oneLine(comment))
	if err != nil {
		return err
	}
	return createFileAtomic(path, pem.EncodeToMemory(block), 0o400)
}

// readPrivateFile checks what it has opened, not what the name meant a moment ago,
// and opens neither a link nor anything that could block.
func readPrivateFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ELOOP) {
			return nil, fmt.Errorf("%w: %s is a symbolic link", ErrKeyFile, path)
		}
		return nil, fmt.Errorf("open key: %w", err)
	}
	defer f.Close() // nothing was written
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	switch mode := st.Mode & 0o777; {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrKeyFile, path)
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("%w: %s belongs to uid %d; make uid %d its owner", ErrKeyFile, path, st.Uid, os.Geteuid())
	case mode&0o077 != 0:
		return nil, fmt.Errorf("%w: %s has mode %04o, so others may have read the key; replace it, or chmod 0400 if nobody has", ErrKeyFile, path, mode)
	case st.Size > maxKeyFile:
		return nil, fmt.Errorf("%w: %s is larger than any key", ErrKeyFile, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	return text, nil
}

func publicFileMatches(path string, want ssh.PublicKey) bool {
	key, _ := readPublicFile(path)
	return key != nil && bytes.Equal(key.Marshal(), want.Marshal())
}

// readPublicFile returns nil for a file that is missing or holds something else:
// it can be written again from the private key.
func readPublicFile(path string) (ssh.PublicKey, string) {
	f, err := os.Open(path + ".pub")
	if err != nil {
		return nil, ""
	}
	defer f.Close() // nothing was written
	text, err := io.ReadAll(io.LimitReader(f, maxKeyLine))
	if err != nil {
		return nil, ""
	}
	key, err := ParsePublicKey(string(text))
	if err != nil {
		return nil, ""
	}
	parts := strings.SplitN(strings.TrimSpace(string(text)), " ", 3)
	if len(parts) < 3 {
		return key, ""
	}
	return key, oneLine(parts[2])
}

// oneLine keeps a comment from becoming a second line of a file that sshd reads.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return strings.TrimSpace(s[:min(len(s), 256)])
}

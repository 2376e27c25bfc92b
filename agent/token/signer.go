package token

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
)

const (
	pemType    = "PRIVATE KEY"
	maxKeyFile = 16 << 10
)

// Signer holds the private key that tokens are signed with, and prints as
// "redacted" wherever it is printed. Use LoadOrCreateSigner. Safe for concurrent use.
type Signer struct {
	id  string
	key ed25519.PrivateKey
}

// Format hides the key from every verb of fmt.
func (*Signer) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, "redacted") } // fmt reports errors itself

// LogValue hides the key from slog.
func (*Signer) LogValue() slog.Value { return slog.StringValue("redacted") }

// MarshalJSON hides the key from encoding/json.
func (*Signer) MarshalJSON() ([]byte, error) { return []byte(`"redacted"`), nil }

// Key returns the public half.
func (s *Signer) Key() Key {
	public := s.key.Public().(ed25519.PublicKey)
	return Key{ID: s.id, Public: public}
}

func newSigner(key ed25519.PrivateKey) *Signer {
	return &Signer{id: thumbprint(key.Public().(ed25519.PublicKey)), key: key}
}

// thumbprint is that of RFC 7638 for a key in the form of RFC 8037.
func thumbprint(key ed25519.PublicKey) string {
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(key) + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// LoadOrCreateSigner loads the Ed25519 key (PEM, PKCS #8) in the file, or makes one
// there with mode 0400. It never replaces a file: of several processes that start
// at once one creates, and all have the same key. A file that others may read, or
// that belongs to another user, is refused.
func LoadOrCreateSigner(path string) (*Signer, error) {
	s, err := loadSigner(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if err := createKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create token key %s: %w", path, err)
	}
	return loadSigner(path)
}

// loadSigner checks what it has opened, not what the name meant a moment ago, and
// opens neither a link nor anything that could block.
func loadSigner(path string) (*Signer, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open token key: %w", err)
	}
	defer f.Close() // nothing was written
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat token key: %w", err)
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("token key %s is not a regular file", path)
	case !ok || int(owner.Uid) != os.Geteuid():
		return nil, fmt.Errorf("token key %s belongs to another user than uid %d", path, os.Geteuid())
	case st.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("token key %s has mode %04o, so others may have read it; replace it, or chmod 0400 if nobody has", path, st.Mode().Perm())
	case st.Size() > maxKeyFile:
		return nil, fmt.Errorf("token key %s is larger than any key", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read token key: %w", err)
	}
	// The causes are left out: they could repeat bytes of a key.
	block, rest := pem.Decode(text)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return nil, fmt.Errorf("token key %s is not one PEM block of type %s", path, pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("token key %s can't be read", path)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("token key %s is not of type Ed25519", path)
	}
	return newSigner(key), nil
}

// createKey fails with fs.ErrExist when there is a file, and never shows an
// incomplete one.
func createKey(path string) (err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	err = pem.Encode(f, &pem.Block{Type: pemType, Bytes: der})
	if err == nil {
		err = f.Chmod(0o400)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

package sshconfig

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/agent/api"
)

// Key is a key pair made on the caller's side. It is never sent anywhere.
type Key struct {
	Public  string // one line of authorized_keys form
	key     ssh.PublicKey
	private []byte // PEM
}

// NewKey makes an Ed25519 key pair.
func NewKey() (*Key, error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key pair: %w", err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("make key pair: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "podspawn")
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return &Key{Public: authorizedLine(key), key: key, private: pem.EncodeToMemory(block)}, nil
}

// Install writes key, certificate, known_hosts and ssh_config to dir (0700, files
// 0600), which is made when missing, and returns the Target. Of what the server
// answered only host, port, user, certificate and CA key are used, each checked;
// its command and config never are. An earlier content of dir is replaced file by
// file, the config last.
func Install(dir string, key *Key, from api.SSH) (Target, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Target{}, fmt.Errorf("find the folder: %w", err)
	}
	t := Target{Host: from.Host, Port: from.Port, User: from.User, Dir: dir}
	if err := t.Validate(); err != nil {
		return Target{}, fmt.Errorf("the server's answer: %w", err)
	}
	known, err := KnownHosts(t.Host, t.Port, from.KnownHosts)
	if err != nil {
		return Target{}, err
	}
	cert, err := Certificate(from.Certificate, t.User, key.key)
	if err != nil {
		return Target{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Target{}, fmt.Errorf("make the folder: %w", err)
	}
	files := []struct {
		name string
		data []byte
	}{
		{KeyFile, key.private},
		{CertificateFile, []byte(cert + "\n")},
		{KnownHostsFile, []byte(known + "\n")},
		{ConfigFile, []byte(t.Config())},
	}
	for _, f := range files {
		if err := replace(filepath.Join(dir, f.name), f.data); err != nil {
			return Target{}, err
		}
	}
	return t, nil
}

// replace writes a file of mode 0600 in one step, so that an ssh that starts just
// now reads the old one or the new one. It does not follow a link at path.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the write's error is the one to report
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

package mcpserver

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/sshconfig"
	"github.com/podspawn/podspawn/sandbox"
)

// Bridge makes keys on the machine that the MCP client runs on. Of a server's
// answer it uses what sshconfig.Install checks and nothing else: a hostile server
// must not get a word into the user's ssh_config.
type Bridge struct {
	// Dir holds one folder a sandbox: ~/.ssh/podspawn, absolute.
	Dir string
}

// localSSH is what the model learns of the files: no key, no certificate.
type localSSH struct {
	Host        string    `json:"host"`
	Port        int       `json:"port"`
	User        string    `json:"user"`
	Command     string    `json:"command"`
	ConfigFile  string    `json:"config_file"`
	ValidBefore time.Time `json:"valid_before"`
	expiresAt   time.Time // of the sandbox
}

// connect makes a key pair, gets a certificate for it and writes both with an
// ssh_config. ref is a sandbox's id or name.
func (b *Bridge) connect(ctx context.Context, a api.API, ref string, r api.CertificateRequest) (localSSH, error) {
	key, err := sshconfig.NewKey()
	if err != nil {
		return localSSH{}, err
	}
	r.PublicKey = key.Public
	block, err := a.Certificate(ctx, ref, r)
	if err != nil {
		return localSSH{}, err
	}
	id, err := sandbox.ParseLogin(block.User)
	if _, named := sandbox.ParseID(ref); err != nil || (named == nil && id != sandbox.ID(ref)) {
		return localSSH{}, &sandbox.Error{
			Kind: sandbox.KindUnavailable, Msg: "the server answered for another sandbox",
			Hint: "check that the address is your podspawn server's",
		}
	}
	dir, err := b.folder(id)
	if err != nil {
		return localSSH{}, err
	}
	t, err := sshconfig.Install(dir, key, block)
	if err != nil {
		return localSSH{}, &sandbox.Error{
			Kind: sandbox.KindUnavailable, Msg: "ssh could not be set up on this machine: " + err.Error(), Err: err,
			Hint: "check that ~/.ssh/podspawn can be written, and that the address is your podspawn server's",
		}
	}
	return localSSH{
		Host: t.Host, Port: t.Port, User: t.User, Command: t.ConfigCommand(),
		ConfigFile: filepath.Join(t.Dir, sshconfig.ConfigFile), ValidBefore: block.ValidBefore, expiresAt: block.ExpiresAt,
	}, nil
}

// folder checks the id first: it came from the server and names a path.
func (b *Bridge) folder(id sandbox.ID) (string, error) {
	if _, err := sandbox.ParseID(string(id)); err != nil {
		return "", &sandbox.Error{
			Kind: sandbox.KindUnavailable, Msg: "the server answered with an id that is none", Err: err,
			Hint: "check that the address is your podspawn server's",
		}
	}
	if !filepath.IsAbs(b.Dir) {
		return "", fmt.Errorf("the folder for keys %q is not absolute", b.Dir)
	}
	return filepath.Join(b.Dir, string(id)), nil
}

// forget removes the folder of a destroyed sandbox: nothing in it is of use any
// more. Only the files that connect makes are removed, and then the folder if
// nothing else is in it.
func (b *Bridge) forget(ctx context.Context, log *slog.Logger, id sandbox.ID) {
	dir, err := b.folder(id)
	if err != nil {
		return
	}
	names := []string{sshconfig.KeyFile, sshconfig.CertificateFile, sshconfig.KnownHostsFile, sshconfig.ConfigFile, ""}
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			log.DebugContext(ctx, "key folder left", "sandbox", id, "error", err)
		}
	}
}

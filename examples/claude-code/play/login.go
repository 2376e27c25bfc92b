package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// login is a way into the sandbox with the system's ssh.
type login struct {
	dir  string   // ours, or "" when the bridge made the files
	args []string // of ssh, up to and with the host
}

func (l *login) close() error {
	if l.dir == "" {
		return nil
	}
	return os.RemoveAll(l.dir)
}

// run runs a command over ssh and returns what it printed and its status.
func (l *login) run(ctx context.Context, command string) (string, int, error) {
	args := append([]string{"-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ControlPath=none"}, l.args...)
	out, err := exec.CommandContext(ctx, "ssh", append(args, "--", command)...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return string(out), exit.ExitCode(), nil
	}
	return string(out), 0, err
}

// certificate gets a certificate for a key that never leaves this machine: the
// bridge's, or with plain HTTP one that we make.
func (p *player) certificate(ctx context.Context) (*login, error) {
	if p.bridge {
		got, err := p.mcp.call(ctx, "ssh_certificate_issue", map[string]any{"id": p.id})
		if err != nil {
			return nil, err
		}
		block := sshBlock(got)
		config, user := text(block, "config_file"), text(block, "user")
		if config == "" || user == "" {
			return nil, errors.New("ssh_certificate_issue: the result names no ssh_config and user")
		}
		p.say("ssh_certificate_issue: %s", text(block, "command"))
		return &login{args: []string{"-F", config, user}}, nil
	}
	return p.ownKey(ctx)
}

// ownKey makes a key pair, sends its public half, and writes the files of ssh
// from the fields of the answer, not from its ssh_config: that is a program's
// input, and the server is somebody else's.
func (p *player) ownKey(ctx context.Context) (_ *login, err error) {
	dir, err := os.MkdirTemp("", "play-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	key := filepath.Join(dir, "key")
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "play", "-f", key).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ssh-keygen: %w: %s", err, out)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		return nil, err
	}
	got, err := p.mcp.call(ctx, "ssh_certificate_issue", map[string]any{"id": p.id, "public_key": strings.TrimSpace(string(public))})
	if err != nil {
		return nil, err
	}
	block := sshBlock(got)
	port, _ := block["port"].(float64)
	host, user := text(block, "host"), text(block, "user")
	if host == "" || user == "" || port == 0 || text(block, "certificate") == "" {
		return nil, errors.New("ssh_certificate_issue: the result lacks host, port, user or certificate")
	}
	for path, data := range map[string]string{key + "-cert.pub": text(block, "certificate"), dir + "/known_hosts": text(block, "known_hosts")} {
		if err := os.WriteFile(path, []byte(strings.TrimSpace(data)+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	p.say("ssh_certificate_issue: for %s at %s port %d until %s", user, host, int(port), text(block, "valid_before"))
	return &login{dir: dir, args: []string{
		"-F", "none", "-i", key, "-o", "CertificateFile=" + key + "-cert.pub", "-o", "IdentitiesOnly=yes",
		"-o", "UserKnownHostsFile=" + dir + "/known_hosts", "-o", "StrictHostKeyChecking=yes",
		"-p", fmt.Sprint(int(port)), "-l", user, host,
	}}, nil
}

// sshBlock is the part of a result that says how to connect.
func sshBlock(result map[string]any) map[string]any {
	if block, ok := result["ssh"].(map[string]any); ok {
		return block
	}
	return result
}

func (p *player) ssh(ctx context.Context, l *login) error {
	out, status, err := l.run(ctx, "cat /workspace/sum; dmesg | grep -i -m1 gvisor; exit 7")
	if err != nil {
		return fmt.Errorf("ssh: %w", err)
	}
	p.say("ssh: exit %d: %s", status, oneLine(out))
	if status != 7 || !strings.Contains(out, "40 + 2") || !strings.Contains(out, "gVisor") {
		return fmt.Errorf("ssh: exit %d and %q, want exit 7, the file that sandbox_exec wrote, and gVisor", status, out)
	}
	return nil
}

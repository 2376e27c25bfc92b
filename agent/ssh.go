package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/sshconfig"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func (a *as) Certificate(ctx context.Context, ref string, r api.CertificateRequest) (api.SSH, error) {
	if err := checkRef(ref); err != nil {
		return api.SSH{}, err
	}
	if r.PublicKey == "" {
		return api.SSH{}, sandbox.Errorf(sandbox.KindInvalidSpec, "make one with ssh-keygen -t ed25519 and send the .pub file's content", "public_key is missing")
	}
	key, _, err := sshconfig.PublicKey(r.PublicKey)
	if err != nil {
		return api.SSH{}, badKey(err)
	}
	if r.Uses < 0 {
		return api.SSH{}, sandbox.Errorf(sandbox.KindInvalidSpec, "use 0 for no limit", "uses is negative")
	}
	if r.ConfigDir != "" {
		if err := sshconfig.ValidDir(r.ConfigDir); err != nil {
			return api.SSH{}, &sandbox.Error{
				Kind: sandbox.KindInvalidSpec, Msg: "config_dir: " + err.Error(),
				Hint: "use a plain absolute path, or one that begins with ~/",
			}
		}
	}
	in := localapi.IssueRequest{
		Sandbox: ref, PublicKey: key, TTL: time.Duration(r.TTL), Uses: r.Uses, SourceAddress: r.SourceAddress,
	}
	var out localapi.IssueResponse
	if err := a.call(ctx, localapi.OpIssue, in, &out); err != nil {
		return api.SSH{}, err
	}
	return block(out, r.ConfigDir)
}

// block is everything that a client needs to connect.
func block(out localapi.IssueResponse, dir string) (api.SSH, error) {
	id := out.Sandbox.ID
	if dir == "" {
		dir = "~/.ssh/podspawn/" + string(id)
	}
	t := sshconfig.Target{Host: out.Host.Host, Port: out.Host.Port, User: id.Login(), Dir: dir}
	if err := t.Validate(); err != nil {
		return api.SSH{}, fmt.Errorf("the configured address of sshd: %w", err)
	}
	known, err := sshconfig.KnownHosts(t.Host, t.Port, out.Host.KnownHosts)
	if err != nil {
		return api.SSH{}, fmt.Errorf("the configured address of sshd: %w", err)
	}
	return api.SSH{
		Host: t.Host, Port: t.Port, User: t.User,
		Command: t.Command(), Config: t.Config(), KnownHosts: known,
		Certificate: out.Certificate, ValidBefore: out.ValidBefore.UTC(), Serial: out.Serial,
		ExpiresAt: out.Sandbox.ExpiresAt.UTC(),
	}, nil
}

package mcpserver

import (
	"context"
	"fmt"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

// How long a tool waits for a command. The limit leaves two seconds of
// answerWithin to the rest.
const (
	execDefault = 20 * time.Second
	execMax     = answerWithin - 2*time.Second
	maxOutput   = 16 << 10 // bytes a stream
)

// tools returns all tools, in the order in which they are listed.
func tools(bridge bool) []tool {
	return []tool{
		createTool(bridge), getTool(), listTool(), extendTool(), runTool(),
		execTool(), pollTool(), inputTool(),
		fileReadTool(), fileWriteTool(), fileEditTool(), fileListTool(),
		destroyTool(), certificateTool(bridge), validateTool(),
	}
}

type sandboxResult struct {
	api.Sandbox
	SSH  any    `json:"ssh,omitempty"` // hides the embedded one
	Next string `json:"next"`
}

func createTool(bridge bool) tool {
	t := tool{
		name: "sandbox_create", title: "Create a sandbox", scope: sandbox.ScopeRun, world: true,
		description: "Make a fresh, isolated Linux sandbox and wait until it is ready (seconds). All arguments are optional: without any you get the standard image (Debian with git, curl, python3; user dev). " +
			"By default it lives 2 hours, ends after 30 minutes without use, and stays when an ssh session ends. With egress public it reaches the internet (apt, git, pip), but no private address. " +
			"Use the returned id with sandbox_exec; call sandbox_destroy when you are done. Reuse one sandbox for related steps instead of making many: there is a quota.",
		args: object{
			"name":            prop("string", "A name unique among your sandboxes: a-z, 0-9 and -."),
			"image":           prop("string", "An image that the host has. Not together with podfile."),
			"podfile":         prop("string", "Text of a podfile.yaml that describes the sandbox."),
			"env":             stringMap("Environment variables for every command."),
			"ttl":             duration("How long it lives at most."),
			"idle_timeout":    duration("Without use for this long it ends."),
			"on_exit":         enum("What happens after the last ssh session.", "keep", "destroy"),
			"egress":          enum("Network access: none, or public (the internet, nothing private). Default: as the host is configured, mostly public.", "none", "public"),
			"public_key":      prop("string", "Content of a .pub file: the answer then has an ssh certificate for it. Never a private key."),
			"idempotency_key": prop("string", "Any unique text. Repeating the call with the same one returns the same sandbox instead of making another."),
		},
		result: sandboxProps(), resultRequired: []string{"id", "state", "expires_at", "next"},
		call: create,
	}
	if bridge {
		t.description += " A key pair and an ssh_config are made on this machine; the answer has the ssh command."
		delete(t.args, "public_key")
	}
	return t
}

// createArgs has the fields of the tool's arguments.
type createArgs struct {
	Name           string            `json:"name"`
	Image          string            `json:"image"`
	Podfile        string            `json:"podfile"`
	Env            map[string]string `json:"env"`
	TTL            api.Duration      `json:"ttl"`
	IdleTimeout    api.Duration      `json:"idle_timeout"`
	OnExit         string            `json:"on_exit"`
	Egress         string            `json:"egress"`
	PublicKey      string            `json:"public_key"`
	IdempotencyKey string            `json:"idempotency_key"`
}

func create(ctx context.Context, s *Server, a api.API, raw []byte) (any, error) {
	var args createArgs
	if err := api.Decode(raw, &args, "project"); err != nil {
		return nil, err
	}
	if s.bridge != nil && args.PublicKey != "" {
		return nil, sandbox.Errorf(sandbox.KindUnknownField, "leave it out: a key is made on this machine", "unknown field %q", "public_key")
	}
	v, err := a.Create(ctx, api.CreateRequest{
		Name: args.Name, Image: args.Image, Podfile: args.Podfile, Env: args.Env, TTL: args.TTL,
		IdleTimeout: args.IdleTimeout, OnExit: args.OnExit, Egress: args.Egress, PublicKey: args.PublicKey,
		IdempotencyKey: args.IdempotencyKey, Maker: api.MakerMCP,
	})
	if err != nil {
		return nil, err
	}
	res := sandboxResult{Sandbox: v, Next: nextCreated}
	switch {
	case s.bridge != nil:
		local, err := s.bridge.connect(ctx, a, string(v.ID), api.CertificateRequest{})
		if err != nil {
			// The sandbox is there; losing its id over ssh would be worse.
			res.Next = fmt.Sprintf("Run commands with sandbox_exec.\nssh is not set up (%s); try ssh_certificate_issue.\nWhen done: sandbox_destroy.", sandbox.Public(err).Msg)
			break
		}
		res.SSH, res.Next = local, nextCreatedLocally
	case v.SSH != nil:
		res.SSH, res.Next = v.SSH, nextCreatedWithKey
	}
	return res, nil
}

// What to do after a creation.
const (
	nextCreated        = "Run commands with sandbox_exec and this id.\nFor ssh, scp or rsync: ssh_certificate_issue with a public key.\nWhen done: sandbox_destroy."
	nextCreatedWithKey = "Run commands with sandbox_exec and this id.\n" + nextSave + "\nWhen done: sandbox_destroy."
	nextCreatedLocally = "Run commands with sandbox_exec and this id, or with ssh.command.\nscp, rsync and sftp take the same -F file.\nWhen done: sandbox_destroy."
	nextSave           = "For ssh: save ssh.certificate and ssh.known_hosts under the paths that ssh.command names, beside your key, then run it."
)

type refArgs struct {
	ID string `json:"id"`
}

func decodeRef(raw []byte) (string, error) {
	var args refArgs
	if err := api.Decode(raw, &args); err != nil {
		return "", err
	}
	return args.ID, needID(args.ID)
}

func needID(id string) error {
	if id == "" {
		return sandbox.Errorf(sandbox.KindInvalidSpec, "sandbox_list shows the ids", "id is missing")
	}
	return nil
}

func getTool() tool {
	return tool{
		name: "sandbox_get", title: "Show a sandbox", scope: sandbox.ScopeRead, readOnly: true, idempotent: true,
		description: "Show one sandbox: its state, when it ends, its limits, open ssh connections, and why ssh logins were refused lately. Also shows ended ones for a while, with the reason.",
		args:        object{"id": prop("string", idText)}, required: []string{"id"},
		result: sandboxProps(), resultRequired: []string{"id", "state", "expires_at", "next"},
		call: func(ctx context.Context, _ *Server, a api.API, raw []byte) (any, error) {
			id, err := decodeRef(raw)
			if err != nil {
				return nil, err
			}
			v, err := a.Get(ctx, id)
			if err != nil {
				return nil, err
			}
			return sandboxResult{Sandbox: v, Next: nextFor(v)}, nil
		},
	}
}

func nextFor(v api.Sandbox) string {
	switch {
	case v.State.Usable():
		return "Run commands with sandbox_exec.\nWhen done: sandbox_destroy."
	case v.State.Final():
		return "It has ended. Make another one with sandbox_create."
	case v.State == sandbox.StateDraining:
		return "It is being destroyed. Make another one with sandbox_create."
	default:
		return "It is starting. sandbox_exec waits for it."
	}
}

type listArgs struct {
	All    bool   `json:"all"`
	Cursor string `json:"cursor"`
	Limit  int    `json:"limit"`
}

type listResult struct {
	Sandboxes []api.Sandbox `json:"sandboxes"`
	Cursor    string        `json:"next_cursor,omitempty"`
	ExpiresAt *time.Time    `json:"expires_at"` // of the one that ends first
	Next      string        `json:"next"`
}

func listTool() tool {
	return tool{
		name: "sandbox_list", title: "List sandboxes", scope: sandbox.ScopeRead, readOnly: true, idempotent: true,
		description: "List your sandboxes, newest first. Use it to find one again instead of making another.",
		args: object{
			"all":    prop("boolean", "Also those that have ended."),
			"cursor": prop("string", "next_cursor of an earlier answer, for more."),
			"limit":  object{"type": "integer", "minimum": 1, "maximum": 50, "description": "At most so many (default 20)."},
		},
		result: object{
			"sandboxes":   object{"type": "array", "items": object{"type": "object"}, "description": "As sandbox_get shows them."},
			"next_cursor": prop("string", "For more; missing at the end."),
			"expires_at":  object{"type": []string{"string", "null"}, "description": "When the first of them ends."},
			"next":        prop("string", "What to do now."),
		},
		resultRequired: []string{"sandboxes", "expires_at", "next"},
		call: func(ctx context.Context, _ *Server, a api.API, raw []byte) (any, error) {
			args := listArgs{Limit: 20}
			if err := api.Decode(raw, &args); err != nil {
				return nil, err
			}
			if args.Limit < 1 || args.Limit > 50 {
				return nil, sandbox.Errorf(sandbox.KindInvalidSpec, "use 1 to 50", "limit %d is out of range", args.Limit)
			}
			l, err := a.List(ctx, api.ListRequest{Final: args.All, Cursor: args.Cursor, Limit: args.Limit})
			if err != nil {
				return nil, err
			}
			res := listResult{Sandboxes: l.Sandboxes, Cursor: l.Next, Next: "Use one with sandbox_exec and its id."}
			if len(l.Sandboxes) == 0 {
				res.Sandboxes, res.Next = []api.Sandbox{}, "There is none. Make one with sandbox_create."
			}
			for _, v := range l.Sandboxes {
				if !v.State.Final() && (res.ExpiresAt == nil || v.ExpiresAt.Before(*res.ExpiresAt)) {
					res.ExpiresAt = &v.ExpiresAt
				}
			}
			return res, nil
		},
	}
}

func destroyTool() tool {
	return tool{
		name: "sandbox_destroy", title: "Destroy a sandbox", scope: sandbox.ScopeRun, idempotent: true, destructive: true,
		description: "End a sandbox and remove everything in it, for good. Copy results out before. Destroying one that has ended is no error.",
		args:        object{"id": prop("string", idText)}, required: []string{"id"},
		result: sandboxProps(), resultRequired: []string{"id", "state", "expires_at", "next"},
		call: func(ctx context.Context, s *Server, a api.API, raw []byte) (any, error) {
			id, err := decodeRef(raw)
			if err != nil {
				return nil, err
			}
			v, err := a.Destroy(ctx, id)
			if err != nil {
				return nil, err
			}
			res := sandboxResult{Sandbox: v, Next: "Nothing is left of it."}
			if !v.State.Final() {
				res.Next = "It is being destroyed; nothing more to do."
			}
			if s.bridge != nil {
				s.bridge.forget(ctx, s.log, v.ID)
			}
			return res, nil
		},
	}
}

type certificateArgs struct {
	ID            string       `json:"id"`
	PublicKey     string       `json:"public_key"`
	TTL           api.Duration `json:"ttl"`
	Uses          int          `json:"uses"`
	SourceAddress string       `json:"source_address"`
	ConfigDir     string       `json:"config_dir"`
}

type certificateResult struct {
	SSH       any       `json:"ssh"`
	ExpiresAt time.Time `json:"expires_at"` // of the sandbox
	Next      string    `json:"next"`
}

func certificateTool(bridge bool) tool {
	t := tool{
		name: "ssh_certificate_issue", title: "Get an ssh certificate", scope: sandbox.ScopeRun,
		description: "Get a short-lived certificate with which stock OpenSSH connects to a sandbox: for ssh, scp, rsync, sftp or git. It is a window of minutes to connect in; a connection that is open stays. " +
			"Make a key pair with ssh-keygen -t ed25519 and pass the .pub file's content as public_key. Never send a private key. " +
			"Save the answer's certificate and known_hosts under the paths that ssh.command names, then run ssh.command.",
		args: object{
			"id":             prop("string", idText),
			"public_key":     prop("string", "Content of a .pub file."),
			"ttl":            duration("How long one can connect with it (default 5m, at most 15m)."),
			"uses":           prop("integer", "How many connections may be opened; 0 is no limit."),
			"source_address": prop("string", "Only from these addresses: CIDRs, separated by commas."),
			"config_dir":     prop("string", "Folder where you keep key and certificate (default ~/.ssh/podspawn/ID)."),
		},
		required: []string{"id", "public_key"},
		result: object{
			"ssh":        sshProp(),
			"expires_at": prop("string", "When the sandbox ends at the latest."),
			"next":       prop("string", "What to do now."),
		},
		resultRequired: []string{"ssh", "expires_at", "next"},
		call:           certificate,
	}
	if bridge {
		t.description = "Prepare ssh access to a sandbox from this machine, for ssh, scp, rsync, sftp or git: makes a fresh key pair here, gets a certificate for it, and writes key, certificate, known_hosts and ssh_config to one folder. " +
			"Answers with the ssh command. The certificate is a window of minutes to connect in; a connection that is open stays. Call it again when ssh says Permission denied."
		delete(t.args, "public_key")
		delete(t.args, "config_dir")
		t.required = []string{"id"}
	}
	return t
}

func certificate(ctx context.Context, s *Server, a api.API, raw []byte) (any, error) {
	var args certificateArgs
	if err := api.Decode(raw, &args); err != nil {
		return nil, err
	}
	if err := needID(args.ID); err != nil {
		return nil, err
	}
	req := api.CertificateRequest{
		PublicKey: args.PublicKey, TTL: args.TTL, Uses: args.Uses, SourceAddress: args.SourceAddress, ConfigDir: args.ConfigDir,
	}
	if s.bridge == nil {
		block, err := a.Certificate(ctx, args.ID, req)
		if err != nil {
			return nil, err
		}
		return certificateResult{SSH: block, ExpiresAt: block.ExpiresAt, Next: nextSave}, nil
	}
	if args.PublicKey != "" || args.ConfigDir != "" {
		return nil, sandbox.Errorf(sandbox.KindUnknownField, "leave them out: key and folder are made on this machine", "unknown field public_key or config_dir")
	}
	local, err := s.bridge.connect(ctx, a, args.ID, req)
	if err != nil {
		return nil, err
	}
	return certificateResult{SSH: local, ExpiresAt: local.expiresAt, Next: "Run ssh.command; append a command to run one.\nscp, rsync and sftp take the same -F file."}, nil
}

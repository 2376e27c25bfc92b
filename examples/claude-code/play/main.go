// Play plays an agent's whole session against a running podspawn, and prints
// each step with what it saw: it connects over MCP, makes a sandbox, runs
// commands in it, gets a certificate, logs in with the system's ssh, destroys
// the sandbox, and shows that the login is refused from then on.
//
//	podspawn token create --subject me --ttl 1h > token
//	go run ./examples/claude-code/play -url http://127.0.0.1:7722/mcp -token-file token
//	go run ./examples/claude-code/play -stdio "podspawn mcp"
//
// It uses nothing of podspawn's own code, so it is also an example of a client.
// It exits with 0 when every step showed what it must.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "play:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("play", flag.ContinueOnError)
	url := fs.String("url", "http://127.0.0.1:7722/mcp", "MCP over HTTP")
	tokenFile := fs.String("token-file", "", "file with the token for -url")
	stdio := fs.String("stdio", "", "command that speaks MCP over stdio, instead of -url")
	timeout := fs.Duration("timeout", 3*time.Minute, "for everything")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	p := &player{out: out, began: time.Now(), bridge: *stdio != ""}
	t, err := open(ctx, *url, *tokenFile, *stdio)
	if err != nil {
		return err
	}
	p.mcp = &server{transport: t}
	return errors.Join(p.play(ctx), t.Close())
}

func open(ctx context.Context, url, tokenFile, stdio string) (transport, error) {
	if stdio != "" {
		return startStdio(ctx, strings.Fields(stdio))
	}
	token := os.Getenv("PODSPAWN_TOKEN")
	if tokenFile != "" {
		b, err := os.ReadFile(tokenFile)
		if err != nil {
			return nil, err
		}
		token = string(b)
	}
	if token = strings.TrimSpace(token); token == "" {
		return nil, errors.New("no token: podspawn token create --subject me > FILE, then -token-file FILE")
	}
	return newHTTPTransport(url, token), nil
}

// player plays the session.
type player struct {
	mcp    *server
	bridge bool // the server makes keys on this machine
	out    io.Writer
	began  time.Time
	id     string
}

func (p *player) say(format string, args ...any) {
	fmt.Fprintf(p.out, "%7.3fs  %s\n", time.Since(p.began).Seconds(), fmt.Sprintf(format, args...))
}

func (p *player) play(ctx context.Context) (err error) {
	if err := p.connect(ctx); err != nil {
		return err
	}
	if err := p.create(ctx); err != nil {
		return err
	}
	defer func() { // whatever happens, nothing is left running
		if p.id != "" {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			_, derr := p.mcp.call(ctx, "sandbox_destroy", map[string]any{"id": p.id})
			err = errors.Join(err, derr)
		}
	}()
	if err := p.exec(ctx); err != nil {
		return err
	}
	login, err := p.certificate(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, login.close()) }()
	if err := p.ssh(ctx, login); err != nil {
		return err
	}
	return p.destroy(ctx, login)
}

func (p *player) connect(ctx context.Context) error {
	var hello struct {
		ProtocolVersion string `json:"protocolVersion"`
		ServerInfo      struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		} `json:"serverInfo"`
	}
	err := p.mcp.request(ctx, "initialize", map[string]any{
		"protocolVersion": protocolVersion, "capabilities": map[string]any{},
		"clientInfo": map[string]any{"name": "podspawn-play", "version": "1"},
	}, &hello)
	if err != nil {
		return err
	}
	if err := p.mcp.notify(ctx, "notifications/initialized"); err != nil {
		return err
	}
	p.say("connected to %s %s, MCP %s", hello.ServerInfo.Name, hello.ServerInfo.Version, hello.ProtocolVersion)
	var list struct {
		Tools []struct {
			Name string `json:"name"`
		} `json:"tools"`
	}
	if err := p.mcp.request(ctx, "tools/list", map[string]any{}, &list); err != nil {
		return err
	}
	have := make(map[string]bool)
	names := make([]string, 0, len(list.Tools))
	for _, t := range list.Tools {
		have[t.Name] = true
		names = append(names, t.Name)
	}
	p.say("tools: %s", strings.Join(names, " "))
	for _, want := range []string{"sandbox_create", "sandbox_get", "sandbox_list", "sandbox_exec", "sandbox_destroy", "ssh_certificate_issue"} {
		if !have[want] {
			return fmt.Errorf("the server has no tool %s", want)
		}
	}
	return nil
}

func (p *player) create(ctx context.Context) error {
	made, err := p.mcp.call(ctx, "sandbox_create", map[string]any{"ttl": "10m"})
	if err != nil {
		return err
	}
	if p.id = text(made, "id"); p.id == "" {
		return errors.New("sandbox_create: the result has no id")
	}
	p.say("sandbox_create: %s is %s and ends by %s", p.id, text(made, "state"), text(made, "expires_at"))
	p.say("    next: %s", oneLine(text(made, "next")))
	return nil
}

func (p *player) exec(ctx context.Context) error {
	for _, c := range []struct {
		command, wantOut string
		wantStatus       float64
	}{
		{"id -un && pwd", "dev\n/workspace", 0},
		{"echo 40 + 2 > sum && expr $(cat sum)", "42", 0},
		{"cat sum; exit 3", "40 + 2", 3}, // the file of the call before is there, and 3 is an answer
		{"dmesg | grep -i -m1 gvisor", "gVisor", 0},
	} {
		got, err := p.mcp.call(ctx, "sandbox_exec", map[string]any{"id": p.id, "command": c.command})
		if err != nil {
			return err
		}
		stdout, status := strings.TrimSpace(text(got, "stdout")), got["exit_code"]
		p.say("sandbox_exec: %s", c.command)
		p.say("    exit %v: %s", status, oneLine(stdout))
		if status != c.wantStatus || !strings.Contains(stdout, c.wantOut) {
			return fmt.Errorf("sandbox_exec %q: exit %v and %q, want exit %v and %q (stderr %q)",
				c.command, status, stdout, c.wantStatus, c.wantOut, text(got, "stderr"))
		}
	}
	return nil
}

func (p *player) destroy(ctx context.Context, l *login) error {
	gone, err := p.mcp.call(ctx, "sandbox_destroy", map[string]any{"id": p.id})
	if err != nil {
		return err
	}
	p.say("sandbox_destroy: %s", text(gone, "state"))
	for text(gone, "state") == "draining" { // bounded by ctx
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		if gone, err = p.mcp.call(ctx, "sandbox_get", map[string]any{"id": p.id}); err != nil {
			return err
		}
	}
	if s := text(gone, "state"); s != "destroyed" {
		return fmt.Errorf("the sandbox is %s, want destroyed", s)
	}
	_, err = p.mcp.call(ctx, "sandbox_exec", map[string]any{"id": p.id, "command": "true"})
	if _, ok := errors.AsType[*toolError](err); !ok {
		return fmt.Errorf("sandbox_exec in a sandbox that is gone: %w, want an error of the tool", err)
	}
	p.say("sandbox_exec again: refused, %s", oneLine(err.Error()))
	p.id = ""
	out, status, err := l.run(ctx, "true")
	if err != nil {
		return err
	}
	if status != 255 {
		return fmt.Errorf("ssh into a sandbox that is gone: exit %d, want 255", status)
	}
	p.say("ssh again: refused, %s", oneLine(out))
	p.say("done")
	return nil
}

// text returns a string field, "" when there is none.
func text(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}

// oneLine makes text of a sandbox or server safe and short to print.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.TrimSpace(s))
	if len(s) > 160 {
		s = s[:160] + "…"
	}
	return s
}

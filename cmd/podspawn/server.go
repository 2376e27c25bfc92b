package main

import (
	"fmt"
	"strings"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/client"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

const maxTokenFile = 16 << 10

// connect returns a client of the service that --server, PODSPAWN_SERVER or the
// default names. It does not talk to it yet.
func (a *app) connect() (api.API, error) {
	c, err := a.clientConfig()
	if err != nil {
		return nil, err
	}
	return client.New(c)
}

// connectAdmin is connect for what administrators ask.
func (a *app) connectAdmin() (*client.Client, error) {
	c, err := a.clientConfig()
	if err != nil {
		return nil, err
	}
	return client.New(c)
}

func (a *app) clientConfig() (client.Config, error) {
	server := a.server
	if server == "" {
		server = a.getenv(envServer)
	}
	if server == "" {
		server = defaultServer
	}
	token, err := a.token()
	if err != nil {
		return client.Config{}, err
	}
	if err := checkServer(server); err != nil {
		return client.Config{}, err
	}
	c := client.Config{Server: server, Token: token, UserAgent: userAgent()}
	if strings.HasPrefix(server, "ssh://") {
		if c.Dial, err = a.overSSH(server); err != nil {
			return client.Config{}, err
		}
		c.Token = "" // the registered key says who calls
	}
	return c, nil
}

// checkServer refuses, in words of its own, the forms of an address that the
// contract knows and this version does not. The rest is the client's to check.
func checkServer(server string) error {
	scheme, rest, ok := strings.Cut(server, "://")
	if ok && scheme != "ssh" && strings.Contains(rest, "@") { // the client would repeat a password in its error
		return &usageError{msg: "--server holds a user name or password", hint: "leave it out; PODSPAWN_TOKEN_FILE names a file with a token"}
	}
	if !ok {
		return &usageError{
			msg:  fmt.Sprintf("--server %s: named servers are not supported in this version yet", server),
			hint: "give an address: unix:///run/podspawn/podspawn.sock or https://HOST",
		}
	}
	return nil
}

// token reads the bearer token, from the file first: a file can be made
// unreadable for others, an environment can't.
func (a *app) token() (localapi.Secret, error) {
	if path := a.getenv(envTokenFile); path != "" {
		b, err := readBounded(path, maxTokenFile)
		if err != nil {
			return "", withHint(fmt.Errorf("read the token: %w", err), envTokenFile+" must name a file that holds a token and nothing else")
		}
		return checkToken(string(b), envTokenFile)
	}
	return checkToken(a.getenv(envToken), envToken)
}

func checkToken(text, source string) (localapi.Secret, error) {
	text = strings.TrimSpace(text)
	for _, r := range text {
		if r <= ' ' || r > '~' {
			return "", &usageError{msg: source + " does not hold a token", hint: "podspawn token create prints one"}
		}
	}
	return localapi.Secret(text), nil
}

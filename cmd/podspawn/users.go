package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/daemon"
	"github.com/podspawn/podspawn/sandbox/localapi"
	"github.com/podspawn/podspawn/sandbox/podfile"
)

type addUserOptions struct {
	keys, files, github []string
	podfile, image      string
}

func newAddUserCommand(a *app) *cobra.Command {
	var o addUserOptions
	cmd := &cobra.Command{
		Use: "add-user NAME", Short: "let a person in by name and key: ssh NAME@host", GroupID: groupAdmin, Args: exact("a NAME"),
		Long: `Registers a person, as root. From then on ssh NAME@host with one of her keys opens
a sandbox of her own, which is made when there is none and shared by her sessions.
Her keys are then in /etc/podspawn/keys/NAME, where changes count at once. Names of
real accounts are refused.`,
		RunE: func(cmd *cobra.Command, args []string) error { return runAddUser(cmd.Context(), a, &o, args[0]) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.keys, "key", nil, "public `KEY`, as in a .pub file; may be repeated")
	f.StringArrayVar(&o.files, "key-file", nil, "`FILE` of public keys, one a line; may be repeated")
	f.StringArrayVar(&o.github, "github", nil, "the keys that `USER` has published there (see github_url in the configuration); may be repeated")
	f.StringVarP(&o.podfile, "file", "f", "", "`PODFILE` of her sandbox (default /etc/podspawn/default.yaml, where there is one); - is stdin")
	f.StringVar(&o.image, "image", "", "`IMAGE` of her sandbox, when there is no Podfile")
	return cmd
}

func newRemoveUserCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "remove-user NAME", Short: "take a person's login, keys and sandbox away", GroupID: groupAdmin, Args: exact("a NAME"),
		Long: `Removes a person that add-user registered, as root: her keys count for nothing from
then on, her connections end, and the sandboxes that only her login reaches are
destroyed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.userCall(cmd.Context(), localapi.OpUserRemove, localapi.UserRequest{Name: args[0]}, nil); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]string{"name": args[0]})
			}
			_, err := fmt.Fprintln(a.stdout, args[0])
			return err
		},
	}
}

func newListUsersCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list-users", Short: "list the people that add-user registered", GroupID: groupAdmin, Args: exact(),
		Long: "Lists, as root, the people that may log in by name and key.",
		RunE: func(cmd *cobra.Command, _ []string) error { return runListUsers(cmd.Context(), a) },
	}
}

func newAuthKeysCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "auth-keys USER", Short: "print what sshd is told about a person's keys", GroupID: groupAdmin, Args: exact("a USER"),
		Long: `Prints, as root, the line that sshd would get for each key of a person that
add-user registered, and on stderr what keeps her out.`,
		RunE: func(cmd *cobra.Command, args []string) error { return runAuthKeys(cmd.Context(), a, args[0]) },
	}
}

// userCall asks the daemon itself: users are the administrator's business, not the
// API's.
func (a *app) userCall(ctx context.Context, op localapi.Op, in localapi.UserRequest, out any) error {
	if os.Geteuid() != 0 {
		return sandbox.Errorf(sandbox.KindPolicy, "run it with sudo", "users are kept by root")
	}
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	d := &localapi.Client{Path: filepath.Join(c.RunDir, daemon.DaemonSocket)}
	return d.Call(ctx, op, localapi.Auth{}, in, out)
}

func runAddUser(ctx context.Context, a *app, o *addUserOptions, name string) error {
	if err := sandbox.ValidateUser(name); err != nil {
		return err
	}
	if len(o.keys)+len(o.files)+len(o.github) == 0 {
		return &usageError{msg: "podspawn add-user needs a key", hint: "give --key, --key-file or --github"}
	}
	if o.podfile != "" && o.image != "" {
		return &usageError{msg: "-f and --image exclude each other", hint: "write the image into the Podfile"}
	}
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	in := localapi.UserRequest{Name: name}
	if in.Keys, err = gatherKeys(ctx, c, o); err != nil {
		return err
	}
	if o.podfile != "" || o.image != "" {
		spec := sandbox.Spec{}.WithDefaults(c.userDefaults())
		if o.podfile != "" {
			text, err := a.readPodfile(o.podfile)
			if err != nil {
				return err
			}
			if spec, err = podfile.Parse([]byte(text), spec); err != nil {
				return err
			}
		}
		if o.image != "" {
			spec.Image = o.image
		}
		if err := spec.Validate(); err != nil {
			return err
		}
		in.Spec = &spec
	}
	var out localapi.UserResponse
	if err := a.userCall(ctx, localapi.OpUserAdd, in, &out); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(out)
	}
	if a.quiet {
		_, err = fmt.Fprintln(a.stdout, out.Name)
		return err
	}
	a.say("%s has %d key(s), in %s", out.Name, len(out.Keys), filepath.Join(keysDir, out.Name))
	_, err = fmt.Fprintf(a.stdout, "ssh %s%s@%s\n", portFlag(c.SSH.Port), out.Name, c.SSH.Host)
	return err
}

func portFlag(port int) string {
	if port == 22 {
		return ""
	}
	return fmt.Sprintf("-p %d ", port)
}

// gatherKeys returns the keys of all flags, one a line.
func gatherKeys(ctx context.Context, c *config, o *addUserOptions) (string, error) {
	var b strings.Builder
	add := func(source, text string) error {
		keys, bad, err := ephemeralkeys.ParseAuthorizedKeys(text)
		for n, why := range bad {
			err = errors.Join(err, fmt.Errorf("line %d: %w", n, why))
		}
		if err == nil && len(keys) == 0 {
			err = errors.New("there is no key")
		}
		if err != nil {
			return &usageError{msg: source + ": " + strings.ReplaceAll(err.Error(), "\n", "; "), hint: "a public key looks like: ssh-ed25519 AAAA… comment"}
		}
		for _, k := range keys {
			b.WriteString(k.Line() + "\n")
		}
		return nil
	}
	for _, k := range o.keys {
		if err := add("--key", k); err != nil {
			return "", err
		}
	}
	for _, f := range o.files {
		text, err := readBounded(f, ephemeralkeys.MaxAuthorizedKeys)
		if err != nil {
			return "", withHint(fmt.Errorf("read --key-file: %w", err), "name a file of public keys")
		}
		if err := add(f, string(text)); err != nil {
			return "", err
		}
	}
	for _, u := range o.github {
		text, err := fetchKeys(ctx, c.GitHubURL, u)
		if err != nil {
			return "", err
		}
		if err := add("the keys of "+u, text); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

func runListUsers(ctx context.Context, a *app) error {
	var out localapi.UsersResponse
	if err := a.userCall(ctx, localapi.OpUserList, localapi.UserRequest{}, &out); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(out)
	}
	rows := [][]string{{"NAME", "KEYS", "SANDBOX", "IMAGE", "SINCE", "PROBLEM"}}
	for _, u := range out.Users {
		if a.quiet {
			if _, err := fmt.Fprintln(a.stdout, u.Name); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{u.Name, fmt.Sprint(len(u.Keys)), string(u.Sandbox), u.Image, u.CreatedAt.Format(time.RFC3339), u.Problem})
	}
	if a.quiet {
		return nil
	}
	return printTable(a.stdout, rows)
}

func runAuthKeys(ctx context.Context, a *app, name string) error {
	var out localapi.UserKeysResponse
	if err := a.userCall(ctx, localapi.OpUserKeys, localapi.UserRequest{Name: name}, &out); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(out)
	}
	for _, l := range out.Lines {
		if _, err := fmt.Fprintln(a.stdout, l); err != nil {
			return err
		}
	}
	for _, p := range out.Problems {
		a.say("%s", p)
	}
	return nil
}

// userDefaults complete the spec of a user's sandbox: its life is longer than that
// of one made for a single job.
func (c *config) userDefaults() sandbox.Defaults {
	d := c.specDefaults()
	d.Lifecycle = sandbox.Lifecycle{
		TTL: 8 * time.Hour, IdleTimeout: 30 * time.Minute, OnExit: sandbox.OnExitDestroy, Grace: time.Minute,
	}
	return d
}

// userSpec is what the sandbox of a user is made from who has no Podfile of her
// own: the administrator's at path, where there is one. The daemon reads it, so it
// must be root's.
func userSpec(c *config, path string) (sandbox.Spec, error) {
	spec := sandbox.Spec{}.WithDefaults(c.userDefaults())
	var st unix.Stat_t
	if err := unix.Stat(path, &st); errors.Is(err, unix.ENOENT) {
		return spec, spec.Validate()
	} else if err != nil {
		return spec, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	unusable := func(err error) error {
		return &sandbox.Error{Kind: sandbox.KindUnavailable, Msg: "the host's Podfile for users can't be used", Hint: "tell the administrator to look at " + path, Err: err}
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return spec, unusable(errors.New(path + " can be written by others than root"))
	}
	text, err := podfile.ReadFile(path)
	if err != nil {
		return spec, unusable(err)
	}
	if spec, err = podfile.Parse(text, spec); err == nil {
		err = spec.Validate()
	}
	if err != nil {
		return spec, unusable(err)
	}
	return spec, nil
}

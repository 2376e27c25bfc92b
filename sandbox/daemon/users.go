package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// selfPID is this process, for what takes a pid.
var selfPID = os.Getpid()

// UserHost keeps the logins and portals of users. See sandbox/portal.
type UserHost interface {
	// OpenUser makes both; it is idempotent.
	OpenUser(ctx context.Context, name string, uid int) (portal uint64, err error)
	// CloseUser removes both and every process of the uid; it is idempotent.
	CloseUser(ctx context.Context, name string, uid int) error
	// ListUsers returns the users that have a login, with their uids.
	ListUsers(ctx context.Context) (map[string]int, error)
	// Taken says who else has the name on this machine, "" for nobody.
	Taken(ctx context.Context, name string) (string, error)
}

// RestoreUsers makes the logins and portals of the registered users, which a
// restart of the machine removed in part, and removes those of others. Call it
// before Serve.
func (s *Server) RestoreUsers(ctx context.Context) error {
	users, err := s.Store.Users(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	var errs []error
	for _, u := range users {
		known[u.Name] = true
		errs = append(errs, s.openUser(ctx, u))
	}
	logins, err := s.UserHost.ListUsers(ctx)
	for name, uid := range logins {
		if !known[name] {
			errs = append(errs, s.UserHost.CloseUser(ctx, name, uid))
		}
	}
	return errors.Join(append(errs, err)...)
}

func (s *Server) openUser(ctx context.Context, u sandbox.User) error {
	portal, err := s.UserHost.OpenUser(ctx, u.Name, u.UID)
	if err != nil {
		return fmt.Errorf("user %s: %w", u.Name, err)
	}
	if portal == u.Portal {
		return nil
	}
	u.Portal = portal
	return s.Store.ChangeUser(ctx, u)
}

// users serves root's commands about users.
func (s *Server) users(ctx context.Context, c call) (answer, error) {
	var in localapi.UserRequest
	if err := localapi.Decode(c.req.Body, &in); err != nil {
		return answer{}, badRequest(err)
	}
	if c.req.Op == localapi.OpUserList {
		users, err := s.Store.Users(ctx)
		if err != nil {
			return answer{}, err
		}
		out := localapi.UsersResponse{Users: []localapi.UserResponse{}}
		for _, u := range users {
			out.Users = append(out.Users, s.userView(ctx, u))
		}
		return answer{body: out}, nil
	}
	if err := sandbox.ValidateUser(in.Name); err != nil { // before the name is part of any path
		return answer{}, err
	}
	s.userMu.Lock()
	defer s.userMu.Unlock()
	switch c.req.Op {
	case localapi.OpUserAdd:
		return s.addUser(ctx, in)
	case localapi.OpUserRemove:
		return answer{}, s.removeUser(ctx, in.Name)
	default:
		return s.userKeys(ctx, in.Name)
	}
}

func (s *Server) addUser(ctx context.Context, in localapi.UserRequest) (answer, error) {
	keys, bad, err := ephemeralkeys.ParseAuthorizedKeys(in.Keys)
	if err != nil || len(keys) == 0 || len(bad) > 0 {
		return answer{}, &sandbox.Error{
			Kind: sandbox.KindInvalidSpec, Msg: "the keys can't be used: " + keysProblem(keys, bad, err),
			Hint: "give public keys as in a .pub file; the only option that is known is verify-required",
		}
	}
	if in.Spec != nil {
		if err := in.Spec.Validate(); err != nil {
			return answer{}, err
		}
	}
	if _, err := s.Store.UserByName(ctx, in.Name); err == nil {
		return answer{}, sandbox.Errorf(sandbox.KindConflict, "her keys are in "+filepath.Join(s.KeysDir, in.Name)+"; podspawn remove-user removes her",
			"there is a user %s already", in.Name)
	} else if sandbox.KindOf(err) != sandbox.KindNotFound {
		return answer{}, err
	}
	who, err := s.UserHost.Taken(ctx, in.Name)
	if err != nil {
		return answer{}, err
	}
	if who != "" {
		return answer{}, sandbox.Errorf(sandbox.KindConflict, "choose another name: a real account's logins stay as they are",
			"the name %s is taken by %s", in.Name, who)
	}
	now := time.Now()
	ev := sandbox.Event{
		Time: now, Event: sandbox.EventSetupChanged, Tenant: in.Name, Subject: "root", Actor: sandbox.ActorAdmin,
		Reason: "user added", Detail: map[string]string{"user": in.Name},
	}
	for i, k := range keys[:min(len(keys), 10)] {
		ev.Detail[fmt.Sprintf("key_%d", i+1)] = ssh.FingerprintSHA256(k.Key)
	}
	u, err := s.Store.AddUser(ctx, sandbox.User{Name: in.Name, Spec: in.Spec, CreatedAt: now}, ev)
	if err != nil {
		return answer{}, err
	}
	if err := errors.Join(s.writeKeys(u.Name, keys), s.openUser(ctx, u)); err != nil {
		// Nothing was usable yet; what can't be removed now, the next start removes.
		return answer{}, errors.Join(err, s.removeUser(context.WithoutCancel(ctx), u.Name))
	}
	return answer{body: s.userView(ctx, u)}, nil
}

// removeUser takes the registration away first: from then on nobody gets in, and
// what is left when this process dies here is removed by RestoreUsers.
func (s *Server) removeUser(ctx context.Context, name string) error {
	u, err := s.Store.UserByName(ctx, name)
	if err != nil {
		return err
	}
	rows, err := s.Store.List(ctx, sandbox.Filter{Tenant: name, Living: true, Limit: 1000})
	if err != nil {
		return err
	}
	now := time.Now()
	if err := s.Store.RemoveUser(ctx, name, now, sandbox.Event{
		Time: now, Event: sandbox.EventSetupChanged, Tenant: name, Subject: "root", Actor: sandbox.ActorAdmin,
		Reason: "user removed", Detail: map[string]string{"user": name},
	}); err != nil {
		return err
	}
	var errs []error
	if err := os.Remove(filepath.Join(s.KeysDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	conns, err := s.Store.OpenConnections(ctx, "")
	errs = append(errs, err)
	for _, c := range conns {
		if c.User == name {
			errs = append(errs, endMonitor(ctx, c.Monitor))
		}
	}
	by := sandbox.Caller{Tenant: name, Subject: "root", Kind: sandbox.ActorAdmin}
	for _, row := range rows {
		if row.Alias != "" { // what only her logins reach
			_, err := s.Manager.Destroy(ctx, row.ID, sandbox.ReasonRequested, by)
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.UserHost.CloseUser(ctx, u.Name, u.UID))...)
}

// userKeys answers what sshd would be told about each of the user's keys.
func (s *Server) userKeys(ctx context.Context, name string) (answer, error) {
	u, err := s.Store.UserByName(ctx, name)
	if err != nil {
		return answer{}, err
	}
	out := localapi.UserKeysResponse{Lines: []string{}}
	for _, p := range []error{s.ground()} {
		if p != nil {
			out.Problems = append(out.Problems, sandbox.Public(p).Msg)
		}
	}
	keys, bad, err := s.readKeys(u.Name)
	if p := keysProblem(keys, bad, err); p != "" {
		out.Problems = append(out.Problems, p)
	}
	rights, err := s.rightsOf(ctx, visitor{user: u, uid: u.UID})
	if err != nil {
		out.Problems = append(out.Problems, sandbox.Public(err).Msg)
	}
	for _, k := range keys {
		out.Lines = append(out.Lines, keyLine(k, rights))
	}
	return answer{body: out}, nil
}

func (s *Server) userView(ctx context.Context, u sandbox.User) localapi.UserResponse {
	v := localapi.UserResponse{Name: u.Name, UID: u.UID, CreatedAt: u.CreatedAt.UTC(), Keys: []localapi.UserKey{}}
	if u.Spec != nil {
		v.Image = u.Spec.Image
	}
	keys, bad, err := s.readKeys(u.Name)
	v.Problem = keysProblem(keys, bad, err)
	for _, k := range keys {
		v.Keys = append(v.Keys, localapi.UserKey{Fingerprint: ssh.FingerprintSHA256(k.Key), Type: k.Key.Type(), Comment: k.Comment})
	}
	if row, err := s.Store.ByUID(ctx, u.UID); err == nil {
		v.Sandbox = row.ID
	}
	return v
}

// keysProblem says in words what is wrong with a user's keys; "" is nothing.
func keysProblem(keys []ephemeralkeys.AuthorizedKey, bad map[int]error, err error) string {
	switch {
	case err != nil:
		return sandbox.Public(err).Msg
	case len(bad) > 0:
		var lines []string
		for n, why := range bad {
			lines = append(lines, fmt.Sprintf("line %d: %v", n, why))
		}
		slices.Sort(lines)
		return clip(strings.Join(lines, "; "), 500)
	case len(keys) == 0:
		return "there is no key"
	}
	return ""
}

// readKeys reads a user's file of keys, which is the administrators' interface:
// edits count at once. A file that others than root could have written gives none.
func (s *Server) readKeys(name string) (keys []ephemeralkeys.AuthorizedKey, bad map[int]error, err error) {
	path := filepath.Join(s.KeysDir, name) // name is a valid user's: it has no slash and no dot
	unusable := func(why string, err error) error {
		return &sandbox.Error{Kind: sandbox.KindUnavailable, Msg: "the keys in " + path + " can't be used: " + why, Hint: "chown root " + path + "; chmod 644 " + path, Err: err}
	}
	if err := rootOnly(s.KeysDir); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil, nil
		}
		return nil, nil, unusable("it can't be opened", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, nil, unusable("it can't be looked at", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != 0 || st.Mode&0o022 != 0 {
		return nil, nil, unusable("it must be a file that only root can write", nil)
	}
	b, err := io.ReadAll(io.LimitReader(f, ephemeralkeys.MaxAuthorizedKeys+1))
	if err != nil {
		return nil, nil, unusable("it can't be read", err)
	}
	keys, bad, err = ephemeralkeys.ParseAuthorizedKeys(string(b))
	if err != nil {
		return nil, nil, unusable(err.Error(), err)
	}
	return keys, bad, nil
}

func (s *Server) writeKeys(name string, keys []ephemeralkeys.AuthorizedKey) error {
	if err := os.MkdirAll(s.KeysDir, 0o755); err != nil {
		return err
	}
	text := "# Keys that may log in as " + name + ", one a line; changes count at once.\n"
	for _, k := range keys {
		text += k.Line() + "\n"
	}
	return ephemeralkeys.WriteFileAtomic(filepath.Join(s.KeysDir, name), []byte(text), 0o644)
}

package portal

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
)

// Config says where things are. The zero value is a real host.
type Config struct {
	ExtraUsers string   // folder of libnss-extrausers' files; "" is /var/lib/extrausers
	NetNS      string   // folder of named network namespaces; "" is /run/netns
	EtcNetNS   string   // folder of their files; "" is /etc/netns
	Home       string   // of every login: an empty folder of root's
	Shell      string   // of every login: the hook
	Temp       []string // world-writable folders to clean; nil is /tmp, /var/tmp, /dev/shm
}

// Host implements sandbox.Host. It is safe for concurrent use within one
// process; the login files are also locked against other processes.
type Host struct {
	c      Config
	logins logins
	mu     sync.Mutex // guards busy
	busy   map[string]*sync.Mutex
}

var _ sandbox.Host = (*Host)(nil)

// New returns a Host.
func New(c Config) *Host {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.ExtraUsers, "/var/lib/extrausers")
	def(&c.NetNS, "/run/netns")
	def(&c.EtcNetNS, "/etc/netns")
	def(&c.Home, "/var/lib/podspawn/home")
	def(&c.Shell, "/usr/libexec/podspawn/podspawn-hook")
	if c.Temp == nil {
		c.Temp = []string{"/tmp", "/var/tmp", "/dev/shm"}
	}
	return &Host{c: c, logins: logins{dir: c.ExtraUsers, home: c.Home, shell: c.Shell}, busy: map[string]*sync.Mutex{}}
}

// lock serialises Open and Close of one login.
func (h *Host) lock(login string) (unlock func()) {
	h.mu.Lock()
	l := h.busy[login]
	if l == nil {
		l = &sync.Mutex{}
		h.busy[login] = l
	}
	h.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// check refuses what is not a sandbox's: this package removes files and kills
// processes by these two values.
func check(login string, uid int) error {
	if _, err := sandbox.ParseLogin(login); err != nil {
		return err
	}
	if uid < sandbox.MinUID || uid > sandbox.MaxUID {
		return fmt.Errorf("uid %d is not a sandbox's", uid)
	}
	return nil
}

// Open makes the portal, then the login: a name that can log in always has its
// namespace.
func (h *Host) Open(ctx context.Context, login string, uid int) (uint64, error) {
	if err := check(login, uid); err != nil {
		return 0, err
	}
	defer h.lock(login)()
	cookie, err := h.openNetNS(ctx, login)
	if err != nil {
		return 0, err
	}
	fault.At("portal.open.netns")
	if err := h.logins.add(login, uid); err != nil {
		return 0, fmt.Errorf("add login %s: %w", login, err)
	}
	return cookie, nil
}

// Close removes processes, leftovers, portal and login, in this order. A uid of
// 0 means that it is not known: then the login's own line is asked, and without
// one there is nothing that could run under it.
func (h *Host) Close(ctx context.Context, login string, uid int) error {
	if _, err := sandbox.ParseLogin(login); err != nil {
		return err
	}
	defer h.lock(login)()
	if uid == 0 {
		known, err := h.logins.list()
		if err != nil {
			return err
		}
		uid = known[login]
	}
	if uid != 0 {
		if err := check(login, uid); err != nil {
			return err
		}
		// A user's uid outlives her sandbox, and other connections of hers may have
		// processes: those of this sandbox were ended with their connections.
		if !sandbox.IsUserUID(uid) {
			if err := killAll(ctx, uid); err != nil {
				return fmt.Errorf("end the processes of uid %d: %w", uid, err)
			}
		}
		if err := errors.Join(h.removeFiles(uid), removeIPC(uid)); err != nil {
			return fmt.Errorf("remove what uid %d left: %w", uid, err)
		}
	}
	fault.At("portal.close.processes")
	if err := h.closeNetNS(ctx, login); err != nil {
		return err
	}
	if err := h.logins.remove(login); err != nil {
		return fmt.Errorf("remove login %s: %w", login, err)
	}
	h.mu.Lock()
	delete(h.busy, login) // whoever waits for it still holds the pointer, and finds nothing to do
	h.mu.Unlock()
	return nil
}

// List returns every login that has a line, a namespace or a folder.
func (h *Host) List(context.Context) (map[string]int, error) {
	all, err := h.logins.list()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{h.c.NetNS, h.c.EtcNetNS} {
		names, err := sandboxNames(dir)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if _, ok := all[n]; !ok {
				all[n] = 0
			}
		}
	}
	return all, nil
}

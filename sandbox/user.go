package sandbox

import (
	"regexp"
	"strings"
	"time"
)

// User is a person who logs in by a name and a key of her own, without any
// certificate: classic mode. Her name is a login of the host for as long as she is
// registered, with a uid and a portal of its own. What she enters is a sandbox
// that is made when there is none; it has her uid, so she has one at a time.
type User struct {
	Name   string // also her tenant
	UID    int    // MinUserUID to MaxUserUID, hers for as long as she is registered
	Portal uint64 // her portal's network namespace, as in Sandbox.Portal; 0 before it exists
	Spec   *Spec  // what her sandbox is made from; nil: what the host has for all
	// CreatedAt and RemovedAt bound her time; RemovedAt is zero while she is registered.
	CreatedAt time.Time
	RemovedAt time.Time
}

// UIDs of users are the end of the range of sandboxes' uids, so that PAM, the
// Match block and the firewall rule hold for them, and are never given to others.
const (
	MinUserUID = 98000
	MaxUserUID = MaxUID
	// MaxSandboxUID ends the round robin.
	MaxSandboxUID = MinUserUID - 1
)

// IsUserUID reports whether a uid is a user's and not one sandbox's own.
func IsUserUID(uid int) bool { return uid >= MinUserUID && uid <= MaxUserUID }

var userNamePattern = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,30}[a-z0-9]$`)

// ValidateUser checks the shape of a user's name: it becomes a login, a folder's
// name, and part of what sshd prints. It is nobody's who could be taken for
// something of ours; that no real account has it, only the host can say.
func ValidateUser(name string) error {
	if !userNamePattern.MatchString(name) {
		return Errorf(KindInvalidSpec, "use 2 to 32 of a-z, 0-9, _ and -, beginning with a letter",
			"%q is no name for a user", clip(name, 40))
	}
	if name == "root" { // whose logins must not depend on what we know
		return Errorf(KindInvalidSpec, "choose another name", "the name root is taken by the administrator")
	}
	if strings.HasPrefix(name, "sbx-") || strings.HasPrefix(name, "podspawn") {
		return Errorf(KindInvalidSpec, "choose a name that does not begin with sbx- or podspawn", "the name %q is podspawn's own", name)
	}
	return nil
}

// ParseUserLogin splits a login into a user's name and, after a "+", the name of
// one of her sandboxes. ok is false for what can't be either.
func ParseUserLogin(login string) (user, name string, ok bool) {
	user, name, named := strings.Cut(login, "+")
	if ValidateUser(user) != nil || named && ValidateName(name) != nil {
		return "", "", false
	}
	return user, name, true
}

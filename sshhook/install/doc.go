// Package install makes the host's own sshd call podspawn's hooks, and undoes
// it: the sshd drop-in, the session part of PAM, the name service, users, keys
// and directories ([Apply], [Uninstall]). [Checks] says what of it is in order,
// and a [Manifest] lets the daemon notice that somebody changed it since.
//
// It touches real users' logins in no way: everything about sandbox logins is
// inside one Match block and behind one PAM line that skips everybody else, and
// before sshd reads it, "sshd -t" and "sshd -T" must agree. Whatever fails is
// rolled back. It knows neither the daemon nor sandboxes; it never edits
// sshd_config itself, and refuses what it can't cure with the remedy.
package install

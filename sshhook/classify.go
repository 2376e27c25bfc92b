package sshhook

import (
	"unicode/utf8"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// MaxCommand bounds a command, in bytes. Linux bounds one environment variable
// to 128 KiB (execve(2), MAX_ARG_STRLEN), so sshd can't pass more on; what is
// longer fails in sshd and never becomes a shell.
const MaxCommand = 128 << 10

// classify says what a channel asks for. original is SSH_ORIGINAL_COMMAND, which
// sshd leaves unset for a shell, sets to the text of its Subsystem line for a
// subsystem, and to the client's string for everything else. Only exactly
// sftpCommand means the subsystem; all else is one opaque argument to the
// guest's shell, and nothing on the host ever looks into it.
func classify(original string, set bool, sftpCommand string) (guest.Exec, error) {
	switch {
	case !set:
		return guest.Exec{LoginShell: true}, nil
	case len(original) > MaxCommand:
		return guest.Exec{}, &localError{"the command is longer than 128 KiB", "put it into a file in the sandbox and run that"}
	case !utf8.ValidString(original):
		// The guest's protocol is JSON, which would change the bytes silently.
		return guest.Exec{}, &localError{"the command is not valid UTF-8", "put it into a file in the sandbox and run that"}
	case sftpCommand != "" && original == sftpCommand:
		return guest.Exec{SFTP: true}, nil
	case original == "":
		// "sh -c ''" does nothing and succeeds; a blank is the same, and not unset.
		return guest.Exec{Command: " "}, nil
	}
	return guest.Exec{Command: original}, nil
}

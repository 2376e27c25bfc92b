package pid1_test

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox/guest"
)

func testSudo(t *testing.T, b *box) {
	for _, c := range []struct {
		name, script, user, want string
		code                     int
	}{
		{"root", "sudo id -u; sudo -u other id -u; pwd; cd /tmp; sudo pwd", "", "0\n1001\n/workspace\n/tmp\n", 0},
		{"environment", "FOO=1 sudo sh -c 'echo $HOME $USER $SUDO_USER $SUDO_UID [$FOO]'; FOO=2 sudo -E sh -c 'echo $FOO'; sudo FOO=3 sh -c 'echo $FOO'", "", "/root root dev 1000 []\n2\n3\n", 0},
		{"status", "sudo sh -c 'exit 42'", "", "", 42},
		{"streams", "echo in | sudo cat; sudo sh -c 'echo e >&2' 2>&1; sudo sh -c 'echo file' > /tmp/by-sudo; cat /tmp/by-sudo", "", "in\ne\nfile\n", 0},
		{"loop keeps its input", "printf 'a\\nb\\n' | while read x; do sudo echo $x; done", "", "a\nb\n", 0},
		{"login", "cd /tmp; echo 'pwd; echo $0' | sudo -i", "", "/root\n-sh\n", 0},
		{"shell with words", `sudo -s echo "two words" '$HOME'`, "", "two words $HOME\n", 0},
		{"not found", "sudo no-such-command 2>&1", "", "sudo: no-such-command: command not found\n", 1},
		{"usage", "sudo --no-such 2>/dev/null", "", "", 1},
		{"validate", "sudo -v && sudo -n true", "", "", 0},
		{"another user is refused", "sudo id -u 2>&1", "other", "sudo: uid 1001 may not use sudo: it is for the sandbox's own user\n", 1},
		{"root may", "sudo -u dev id -u", "root", "1000\n", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := b.run(t, guest.Exec{Script: c.script, User: c.user}, "")
			if r.out != c.want || r.exit.Code != c.code || r.exit.Error != "" {
				t.Errorf("%s: %+v, want %q and %d", c.script, r, c.want, c.code)
			}
		})
	}
	t.Run("signal", func(t *testing.T) {
		l := b.start(t, guest.Exec{Script: "sudo sh -c \"trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done\""})
		l.expect(t, "ready")
		l.signals <- "INT"
		l.expect(t, "caught")
		l.wait(t)
	})
	t.Run("dies with its session", func(t *testing.T) {
		l := b.start(t, guest.Exec{Script: "sudo sh -c \"trap '' HUP TERM; echo ready; sleep 1006; :\""})
		l.expect(t, "ready")
		l.cancel()
		await(t, "command of sudo is gone", func() bool { return b.count(t, "sleep 1006") == 0 })
	})
}

func testSudoTerminal(t *testing.T, b *box) {
	l := b.start(t, guest.Exec{LoginShell: true, PTY: terminal})
	say := func(s string) {
		_, err := io.WriteString(l.in, s)
		must(t, err)
	}
	say("sudo -i\n")
	say("id -u; tty; stty size; echo root-$((1+1))\n")
	l.expect(t, "33 101\r\n")
	l.expect(t, "root-2")
	l.resize <- guest.Window{Rows: 44, Cols: 55}
	await(t, "new size arrives", func() bool {
		say("stty size\n")
		time.Sleep(50 * time.Millisecond) // between two tries
		return strings.Contains(l.out.String(), "44 55\r\n")
	})
	say("sleep 1007\n")
	await(t, "sleep runs", func() bool { return b.count(t, "sleep 1007") == 1 })
	say("\x03")
	say("echo int-$?\n")
	l.expect(t, "int-130")
	if strings.Contains(l.out.String(), "job control") {
		t.Errorf("no job control under sudo: %q", l.out.String())
	}
	say("exit 8\n")
	l.expect(t, "exit 8\r\n/workspace $ ") // before, a key would be for the shell that ends
	say("echo back-$?; stty -a | grep -c -w icanon; exit\n")
	l.expect(t, "back-8\r\n1")
	l.wait(t)
}

package sshhook

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/podspawn/podspawn/sandbox/guest"
)

const sftpText = "/usr/lib/openssh/sftp-server"

func TestClassify(t *testing.T) {
	long := strings.Repeat("x", MaxCommand)
	tests := []struct {
		name string
		in   string
		set  bool
		sftp string
		want guest.Exec
		err  bool
	}{
		{"shell/unset", "", false, sftpText, guest.Exec{LoginShell: true}, false},
		{"command/empty is not a shell", "", true, "", guest.Exec{Command: " "}, false},
		{"command/plain", "id", true, sftpText, guest.Exec{Command: "id"}, false},
		{"command/opaque", "-l\n\"';$(id) `id`", true, sftpText, guest.Exec{Command: "-l\n\"';$(id) `id`"}, false},
		{"sftp/exact", sftpText, true, sftpText, guest.Exec{SFTP: true}, false},
		{"sftp/not granted", sftpText, true, "", guest.Exec{Command: sftpText}, false},
		{"sftp/with more", sftpText + "; id", true, sftpText, guest.Exec{Command: sftpText + "; id"}, false},
		{"sftp/with a blank", sftpText + " ", true, sftpText, guest.Exec{Command: sftpText + " "}, false},
		{"sftp/internal", "internal-sftp -f x", true, "internal-sftp", guest.Exec{Command: "internal-sftp -f x"}, false},
		{"command/longest", long, true, sftpText, guest.Exec{Command: long}, false},
		{"denied/too long", long + "x", true, sftpText, guest.Exec{}, true},
		{"denied/not UTF-8", "printf \xff", true, sftpText, guest.Exec{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := classify(tt.in, tt.set, tt.sftp)
			if (err != nil) != tt.err {
				t.Fatalf("classify = %v, want error %v", err, tt.err)
			}
			if err != nil && !strings.Contains(refusalLine(err), "; ") {
				t.Errorf("refusal %q has no hint", refusalLine(err))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzClassifyNeverPanics(f *testing.F) {
	f.Add("", false, "")
	f.Add("", true, sftpText)
	f.Add(sftpText, true, sftpText)
	f.Add("\x00-c '", true, "internal-sftp")
	f.Fuzz(func(t *testing.T, in string, set bool, sftp string) {
		got, err := classify(in, set, sftp)
		kinds := 0
		for _, is := range []bool{got.LoginShell, got.Command != "", got.SFTP, got.Script != "", got.Argv != nil} {
			if is {
				kinds++
			}
		}
		switch {
		case err != nil && kinds != 0:
			t.Errorf("classify(%q) refused and still asks for %+v", in, got)
		case err == nil && kinds != 1:
			t.Errorf("classify(%q) asks for %d things", in, kinds)
		case got.LoginShell && set:
			t.Errorf("classify(%q) made a command a shell", in)
		case got.SFTP && in != sftp:
			t.Errorf("classify(%q) is sftp, whose text is %q", in, sftp)
		case got.Command != "" && in != "" && got.Command != in:
			t.Errorf("classify(%q) changed the command to %q", in, got.Command)
		}
		if line := oneLine(in); !utf8.ValidString(line) || strings.ContainsAny(line, "\n\r\x1b") || len(line) > maxLine+4 {
			t.Errorf("oneLine(%q) = %q", in, line)
		}
	})
}

func TestParseEnvKeepsAnAllowListOnly(t *testing.T) {
	got := ParseEnv([]string{
		"PATH=/evil", "LD_PRELOAD=/evil.so", "BASH_ENV=/evil", "DOCKER_HOST=tcp://evil", "LC_EVIL=$(id)", "LC_ALL=$(id)",
		"LANG=de_DE.UTF-8@euro", "LC_TIME=C", "LC_CTYPE=" + strings.Repeat("x", 65), "TERM=xterm-256color", "TERM=second",
		"SSH_ORIGINAL_COMMAND=a=b\nc", "novalue", "=x",
		"PAM_TYPE=open_session", "PAM_USER=" + login, "PAM_RHOST=192.0.2.1", "SSH_AUTH_INFO_0=publickey k",
	})
	want := Env{
		Command: "a=b\nc", HasCommand: true, Term: "xterm-256color",
		Locale:  map[string]string{"LANG": "de_DE.UTF-8@euro", "LC_TIME": "C"},
		PAMType: "open_session", PAMUser: login, PAMHost: "192.0.2.1", AuthInfo: "publickey k",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, term := range []string{"", "-x", "a b", "$(id)", "x\n", "../x"} {
		if got := ParseEnv([]string{"TERM=" + term}).Term; got != "" {
			t.Errorf("TERM=%q was kept", term)
		}
	}
}

package install

import (
	"strings"
	"testing"
)

const stockPAM = "# head\n@include common-auth\naccount required pam_nologin.so\n\n# first\n# session rule\nsession required pam_loginuid.so\n@include common-session\n"

func TestInsertPAM(t *testing.T) {
	fence := fenceBegin + pamLines() + fenceEnd
	good := strings.Replace(stockPAM, "# first\n", fence+"# first\n", 1)
	tests := []struct{ name, in, want string }{
		{"stock", stockPAM, good},
		{"there already", good, good},
		{"a line lost", strings.Replace(good, "session requisite                   pam_usernet.so group=podspawn\n", "", 1), good},
		{"moved down", stockPAM + fence, good},
		{"only includes", "@include common-auth\n@include common-session-noninteractive\n", "@include common-auth\n" + fence + "@include common-session-noninteractive\n"},
		{"optional module", "-session optional pam_systemd.so\n", fence + "-session optional pam_systemd.so\n"},
		{"no line break at the end", "auth required x\nsession required y", "auth required x\n" + fence + "session required y"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := insertPAM(tt.in)
			if err != nil || got != tt.want {
				t.Errorf("insertPAM = %v:\n%s\nwant\n%s", err, got, tt.want)
			}
		})
	}
	if _, err := insertPAM("auth required x\n# session required y\n"); err == nil {
		t.Error("insertPAM without a session part = nil")
	}
	if got := removePAM(good); got != stockPAM {
		t.Errorf("removePAM:\n%s", got)
	}
	if open := fenceBegin + "session x\n"; removePAM(open) != open {
		t.Error("removePAM took a fence without an end")
	}
}

func TestInsertNSS(t *testing.T) {
	rest := "group: files\nshadow: files\n"
	tests := []struct{ name, in, want string }{
		{"plain", "passwd: files\n" + rest, "passwd: files extrausers\ngroup: files extrausers\nshadow: files extrausers\n"},
		{"more services", "passwd:\t\tfiles systemd # files\n" + rest, "passwd:\t\tfiles extrausers systemd # files\ngroup: files extrausers\nshadow: files extrausers\n"},
		{"action", "passwd: files [NOTFOUND=return] sss\n" + rest, "passwd: files extrausers [NOTFOUND=return] sss\ngroup: files extrausers\nshadow: files extrausers\n"},
		{"compat", "passwd: compat\n" + rest, "passwd: compat extrausers\ngroup: files extrausers\nshadow: files extrausers\n"},
		{"no blank", "passwd:files\n" + rest, "passwd:files extrausers\ngroup: files extrausers\nshadow: files extrausers\n"},
		{"some of somebody else's", "passwd: files extrausers\n" + rest, "passwd: files extrausers\ngroup: files extrausers\nshadow: files extrausers\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, added, err := insertNSS(tt.in)
			if err != nil || got != tt.want {
				t.Errorf("insertNSS = %v:\n%s\nwant\n%s", err, got, tt.want)
			}
			if back := removeNSS(got, added); back != tt.in {
				t.Errorf("removeNSS:\n%s\nwant\n%s", back, tt.in)
			}
			if again, more, err := insertNSS(got); again != got || len(more) != 0 || err != nil {
				t.Errorf("insertNSS again added %v, %v", more, err)
			}
		})
	}
	for _, in := range []string{"", "passwd: files\ngroup: files\n", "passwd: sss\n" + rest, "#passwd: files\n" + rest} {
		if _, _, err := insertNSS(in); err == nil {
			t.Errorf("insertNSS(%q) = nil", in)
		}
	}
}

func TestMayMatch(t *testing.T) {
	for pattern, want := range map[string]bool{
		"*": true, "sbx-*": true, "s?x-*": true, "*z": true, "sbx-????????????????": true, "SBX-*": true, "*9*8*7*": true,
		"sbx-": false, "sbx-???": false, "root": false, "*i": false, "sbx_*": false, "": false, "sbx-?????????????????": false,
	} {
		if got := mayMatch(pattern, loginSets()); got != want {
			t.Errorf("mayMatch(%q) = %v, want %v", pattern, got, want)
		}
	}
}

func TestDiff(t *testing.T) {
	got := diff("1\n2\n3\n4\n5\n6\n", "1\n2\n3\nx\n5\n6\n7\n")
	if want := "  2\n  3\n- 4\n+ x\n  5\n  6\n+ 7"; got != want {
		t.Errorf("diff:\n%s\nwant\n%s", got, want)
	}
	if got := diff("", "a\n"); got != "+ a" {
		t.Errorf("diff of a new file = %q", got)
	}
}

func FuzzEditsAreUndone(f *testing.F) {
	f.Add(stockPAM, "passwd: files\ngroup: files # x\nshadow:files\n")
	f.Fuzz(func(t *testing.T, pam, nss string) {
		if !strings.Contains(pam, fenceBegin) && strings.HasSuffix(pam, "\n") {
			if got, err := insertPAM(pam); err == nil && removePAM(got) != pam {
				t.Errorf("removePAM(insertPAM(%q)) = %q", pam, removePAM(got))
			}
		}
		if got, added, err := insertNSS(nss); err == nil && removeNSS(got, added) != nss {
			t.Errorf("removeNSS(insertNSS(%q)) = %q", nss, removeNSS(got, added))
		}
	})
}

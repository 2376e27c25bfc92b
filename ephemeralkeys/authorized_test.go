package ephemeralkeys

import (
	"strings"
	"testing"
)

const someKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIINzNi4hzA4U/tmVDGlHHTRK7sTBDtVLsMgYCWlgqCwK"

func TestParseAuthorizedKeys(t *testing.T) {
	tests := []struct {
		name, text string
		keys, bad  int
	}{
		{"empty", "", 0, 0},
		{"comments and empty lines", "# mine\n\n  \n" + someKey + " laptop\r\n", 1, 0},
		{"verify-required", "verify-required " + someKey, 1, 0},
		{"another option", `from="192.0.2.1" ` + someKey + "\n", 0, 1},
		{"two options", "verify-required,no-pty " + someKey + "\n", 0, 1},
		{"a command", `command="id" ` + someKey + "\n", 0, 1},
		{"an authority", "cert-authority " + someKey, 0, 1},
		{"garbage before a key", "garbage\n" + someKey, 1, 1},
		{"a private key", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE\n", 0, 2},
		{"DSA", "ssh-dss AAAAB3NzaC1kc3M=", 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			keys, bad, err := ParseAuthorizedKeys(tt.text)
			if err != nil || len(keys) != tt.keys || len(bad) != tt.bad {
				t.Errorf("ParseAuthorizedKeys = %d keys, bad %v, %v, want %d and %d", len(keys), bad, err, tt.keys, tt.bad)
			}
		})
	}
	if _, _, err := ParseAuthorizedKeys(strings.Repeat(someKey+"\n", 300)); err == nil {
		t.Error("300 keys are accepted")
	}
	if _, _, err := ParseAuthorizedKeys(strings.Repeat("#", MaxAuthorizedKeys+1)); err == nil {
		t.Error("a file that is too long is accepted")
	}
}

func TestAuthorizedKeyKeepsItsOption(t *testing.T) {
	for _, line := range []string{someKey, someKey + " laptop", "verify-required " + someKey + " a b"} {
		keys, _, err := ParseAuthorizedKeys(line)
		if err != nil || len(keys) != 1 || keys[0].Line() != line {
			t.Errorf("%q comes back as %v, %v", line, keys, err)
		}
	}
}

func TestParseAuthInfoKey(t *testing.T) {
	tests := []struct {
		name, info string
		ok         bool
	}{
		{"a key", "publickey " + someKey + "\n", true},
		{"a password", "password", false},
		{"two methods", "publickey " + someKey + "\npassword\n", false},
		{"two keys", "publickey " + someKey + "\npublickey " + someKey + "\n", false},
		{"another type", "publickey ssh-rsa " + strings.Fields(someKey)[1], false},
		{"nothing", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ParseAuthInfoKey(tt.info); (err == nil) != tt.ok {
				t.Errorf("ParseAuthInfoKey = %v, want ok=%v", err, tt.ok)
			}
		})
	}
}

func FuzzParseAuthorizedKeysGivesBackWhatItRead(f *testing.F) {
	f.Add(someKey + " laptop\nverify-required " + someKey)
	f.Add(`command="id" ` + someKey)
	f.Fuzz(func(t *testing.T, text string) {
		keys, _, err := ParseAuthorizedKeys(text)
		if err != nil {
			return
		}
		for _, k := range keys {
			again, bad, err := ParseAuthorizedKeys(k.Line())
			if err != nil || len(bad) > 0 || len(again) != 1 || again[0].Line() != k.Line() || strings.ContainsAny(k.Line(), "\n\r\x00") {
				t.Errorf("%q reads as %v, %v, %v", k.Line(), again, bad, err)
			}
		}
	})
}

package main

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestFetchKeysRefuses(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Error("a request came through")
	}))
	defer srv.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "https://"), ":")
	for _, c := range []struct{ name, base, user, want string }{
		{"no https", "http://127.0.0.1", "alice", "no https address"},
		{"credentials in the address", "https://a:b@127.0.0.1", "alice", "no https address"},
		{"no user name", srv.URL, "../alice", "no user name"},
		{"an empty user name", srv.URL, "", "no user name"},
		{"a name of a private address", "https://localhost:" + port, "alice", "private address"},
		{"an unknown certificate", srv.URL, "alice", "can't be fetched"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := fetchKeys(context.Background(), c.base, c.user); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("fetchKeys = %v, want %q", err, c.want)
			}
		})
	}
}

func TestFetchKeysFrom(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIINzNi4hzA4U/tmVDGlHHTRK7sTBDtVLsMgYCWlgqCwK\n"
	mux := http.NewServeMux()
	mux.HandleFunc("/alice.keys", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(key)) })
	mux.HandleFunc("/moved.keys", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/alice.keys", http.StatusFound)
	})
	mux.HandleFunc("/huge.keys", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(strings.Repeat("x", 65<<10)))
	})
	srv := httptest.NewTLSServer(mux)
	defer srv.Close()
	roots := srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for _, c := range []struct{ user, want, problem string }{
		{"alice", strings.TrimSpace(key), ""},
		{"moved", "", "redirect"},
		{"huge", "", "too long"},
		{"nobody", "", "404"},
	} {
		got, err := fetchKeysWith(context.Background(), srv.URL, c.user, &tls.Config{RootCAs: roots})
		if got != c.want || (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("keys of %s = %q, %v, want %q and %q", c.user, got, err, c.want, c.problem)
		}
	}
}

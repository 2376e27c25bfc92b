package main

import (
	"os"
	"sync"
	"time"

	"github.com/podspawn/podspawn/sshhook/install"
)

// setup is server-setup's manifest as the daemon uses it: read again when
// server-setup ran again, so that the daemon need not be restarted for it. It is
// safe for concurrent use.
type setup struct {
	path string

	mu       sync.Mutex // guards what follows
	manifest *install.Manifest
	written  time.Time
}

func openSetup(path string) (*setup, error) {
	s := &setup{path: path}
	if _, err := s.current(); err != nil {
		return nil, withHint(err, "run podspawn server-setup first")
	}
	return s, nil
}

func (s *setup) current() (*install.Manifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := os.Stat(s.path)
	if err != nil {
		return nil, err
	}
	if s.manifest == nil || !st.ModTime().Equal(s.written) {
		m, err := install.LoadManifest(s.path)
		if err != nil {
			return nil, err
		}
		s.manifest, s.written = m, st.ModTime()
	}
	return s.manifest, nil
}

// check returns nil while the files that decide about logins are as server-setup
// left them.
func (s *setup) check() error {
	m, err := s.current()
	if err != nil {
		return err
	}
	return m.Check()
}

// sftp is sshd's text for the SFTP subsystem; without a manifest there is none.
func (s *setup) sftp() string {
	m, err := s.current()
	if err != nil {
		return ""
	}
	return m.SFTP
}

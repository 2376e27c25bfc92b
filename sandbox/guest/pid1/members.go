package pid1

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
	"time"
)

// killGrace is what processes get between TERM and KILL.
const killGrace = 500 * time.Millisecond

// members returns the living processes of a session. A process that called
// setsid has left it on purpose (a daemon, tmux) and is not found.
func members(session int) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid <= 1 {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // gone meanwhile
		}
		if state, sid, ok := parseStat(stat); ok && sid == session && state != 'Z' && state != 'X' {
			pids = append(pids, pid)
		}
	}
	return pids
}

// parseStat reads state and session from /proc/PID/stat. The command's name
// stands in parentheses and may itself contain some: only the last one counts.
func parseStat(b []byte) (state byte, session int, ok bool) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, 0, false
	}
	f := bytes.Fields(b[i+1:]) // state ppid pgrp session
	if len(f) < 4 || len(f[0]) != 1 {
		return 0, 0, false
	}
	session, err := strconv.Atoi(string(f[3]))
	return f[0][0], session, err == nil
}

// end ends p's whole session: first politely, and after killGrace by force. It
// returns when nothing of it is left, or KILL was sent.
func (p *process) end() {
	signalAll := func(sigs ...syscall.Signal) {
		for _, sig := range sigs {
			_ = p.signalGroup(0, sig) // also what forks between two looks at /proc
			for _, pid := range members(p.pid) {
				_ = syscall.Kill(pid, sig) // it may just have ended
			}
		}
	}
	// CONT, or a stopped process would only see them when it is resumed.
	signalAll(syscall.SIGHUP, syscall.SIGTERM, syscall.SIGCONT)
	for deadline := time.Now().Add(killGrace); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if len(members(p.pid)) == 0 {
			return
		}
	}
	// Twice: a process may fork while the first round goes through the list.
	signalAll(syscall.SIGKILL, syscall.SIGKILL)
}

package guest

// Version is the protocol's version; guest and host refuse any other.
const Version = 1

// Bounds of the protocol, in bytes.
const (
	MaxPreamble = 128 << 10
	MaxPayload  = 64 << 10  // of a frame, but for FrameRequest
	MaxRequest  = 256 << 10 // of FrameRequest
	StdinWindow = 256 << 10
	AnswerSize  = 8
)

// Paths inside a sandbox.
const (
	BinaryPath = "/.podspawn/guest" // the guest, read-only
	SocketDir  = "/.podspawn/run"   // the host's directory
	SocketName = "guest.sock"       // in SocketDir
)

// Right is something a connection may ask of the guest.
type Right string

// The rights.
const (
	RightExec Right = "exec" // start processes
	RightPTY  Right = "pty"  // with a terminal
	RightSFTP Right = "sftp" // the file transfer subsystem

	RightFileRead  Right = "file-read"  // FileOps that change nothing
	RightFileWrite Right = "file-write" // all FileOps
	RightDial      Right = "dial"       // connect to ports in the sandbox, and out of it
	RightListen    Right = "listen"     // listen on the sandbox's loopback
	RightAgent     Right = "agent"      // make a socket for the client's SSH agent

	// RightShutdown is the daemon's alone, and stands alone: having answered, the
	// guest kills everything in the sandbox and exits. No request follows, and the
	// rest of the preamble counts for nothing, a deadline in the past included.
	RightShutdown Right = "shutdown"
)

// Preamble is what the daemon says about a connection before anyone else may
// use it. It is JSON behind four bytes of length (big endian).
type Preamble struct {
	V        int               `json:"v"`
	Login    string            `json:"login"`
	Session  string            `json:"session,omitempty"` // id of the SSH connection or exec, for the guest's log
	Rights   []Right           `json:"rights"`
	Deadline int64             `json:"deadline"` // unix seconds at which the guest exits, whatever happens on the host
	User     string            `json:"user"`     // default user, name or uid; "" is root
	Shell    string            `json:"shell"`    // "" is the user's shell in /etc/passwd, else /bin/sh
	Home     string            `json:"home"`     // unused when the user has one in /etc/passwd
	Work     string            `json:"work"`     // default working directory, made for the user when missing
	Env      map[string]string `json:"env,omitempty"`
}

// Answer is the guest's word on a preamble: "PSG1", then the code (big endian).
type Answer uint32

// The answers.
const (
	AnswerOK         Answer = 0
	AnswerVersion    Answer = 1 // another protocol version
	AnswerMalformed  Answer = 2 // not a preamble
	AnswerExpired    Answer = 3 // the deadline has passed
	AnswerNotOurDisk Answer = 4 // the socket directory is not the host's tmpfs
	AnswerBusy       Answer = 5 // too many connections
)

// AnswerMagic opens every answer.
const AnswerMagic = "PSG1"

// FrameType says what a frame carries.
type FrameType byte

// Frames that open a connection, one of them, from host to guest. The guest
// answers FrameExit with an Error, or FrameStarted, after which:
//
//   - FrameRequest: frames as below;
//   - FrameDial and FrameAccept: no frames any more, the connection is the stream;
//   - FrameListen: FrameAccepted for each connection that was accepted, each of
//     which the host fetches with FrameAccept on a connection of its own. The
//     listener ends with the connection that asked for it.
const (
	FrameRequest FrameType = 'R' // an Exec
	FrameDial    FrameType = 'D' // "host:port", the name resolved in the sandbox
	FrameListen  FrameType = 'L' // a Listen
	FrameAccept  FrameType = 'A' // the eight bytes of a FrameAccepted
)

// Frames from host to guest.
const (
	FrameStdin  FrameType = 'i' // bytes
	FrameEOF    FrameType = 'e' // end of stdin
	FrameResize FrameType = 'w' // a Window
	FrameSignal FrameType = 's' // a signal's name without SIG, to the process group
)

// Frames from guest to host.
const (
	FrameStarted  FrameType = 'S' // done; for a Listen of an agent the socket's path, else empty
	FrameAccepted FrameType = 'a' // eight bytes that stand for an accepted connection
	FrameStdout   FrameType = 'o' // bytes; with a terminal everything
	FrameStderr   FrameType = 'E' // bytes
	FrameCredit   FrameType = 'c' // four bytes: that much stdin was consumed
	FrameExit     FrameType = 'x' // an Exit, last
)

// Exec asks the guest to start a process. Exactly one of LoginShell, Command,
// Script, Argv, SFTP and File is set.
type Exec struct {
	LoginShell bool     `json:"login_shell,omitempty"` // the user's shell, argv[0] with a dash
	Command    string   `json:"command,omitempty"`     // one argument to the user's shell's -c
	Script     string   `json:"script,omitempty"`      // one argument to /bin/sh -c
	Argv       []string `json:"argv,omitempty"`        // run directly, found in PATH
	SFTP       bool     `json:"sftp,omitempty"`        // the SFTP server
	File       *FileOp  `json:"file,omitempty"`        // one operation on files, see FileOp

	User string            `json:"user,omitempty"` // instead of the preamble's; name or uid
	Dir  string            `json:"dir,omitempty"`  // instead of the preamble's
	Env  map[string]string `json:"env,omitempty"`  // on top of the preamble's
	PTY  *Terminal         `json:"pty,omitempty"`
}

// Terminal asks for a terminal.
type Terminal struct {
	Term string `json:"term"`
	Window
}

// Window is a terminal's size, in characters and pixels.
type Window struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
	X    uint16 `json:"x,omitempty"`
	Y    uint16 `json:"y,omitempty"`
}

// Exit says how the process ended. Error is set when it could not be started;
// Code is then 127 (not found) or 126, as a shell would have it.
type Exit struct {
	Code   int    `json:"code"`
	Signal string `json:"signal,omitempty"` // name without SIG, instead of Code
	Error  string `json:"error,omitempty"`
}

// Listen asks the guest to listen: on a port of the sandbox's loopback, IPv4 and
// IPv6, or, with Agent, on a unix socket that only the session's user can open.
type Listen struct {
	Port  int  `json:"port,omitempty"`
	Agent bool `json:"agent,omitempty"`
}

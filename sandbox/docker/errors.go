package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"github.com/podspawn/podspawn/sandbox"
)

const hintImage = "make it with podspawn image build, or see podspawn image list; images are never pulled"

func errNoImage(ref string, err error) error {
	return &sandbox.Error{
		Kind: sandbox.KindImageNotFound, Err: err, Hint: hintImage,
		Msg: fmt.Sprintf("there is no image %q on this host", ref),
	}
}

func errNoRuntime(name string, err error) error {
	return &sandbox.Error{
		Kind: sandbox.KindUnavailable, Err: err,
		Msg:  fmt.Sprintf("the container engine has no runtime %s", name),
		Hint: "run podspawn server-setup as root, which registers gVisor with the engine",
	}
}

// engineError classifies what the engine said. Beyond a few statuses it only has
// text to offer, so text is matched: a phrase that changes costs the hint and
// nothing else, the error then is an internal one.
func engineError(doing string, err error) error {
	if err == nil {
		return nil
	}
	e := &sandbox.Error{Err: fmt.Errorf("%s: %w", doing, err)}
	text := strings.ToLower(err.Error())
	switch {
	case errors.Is(err, context.Canceled):
		return e.Err
	case errors.Is(err, context.DeadlineExceeded):
		e.Kind, e.Msg = sandbox.KindUnavailable, "the container engine did not answer in time"
		e.Hint = "it may be overloaded or hung; podspawn doctor on the host looks at it"
	case client.IsErrConnectionFailed(err), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF),
		contains(text, "connection refused", "connection reset", "broken pipe", "cannot connect to the docker daemon"):
		e.Kind, e.Msg = sandbox.KindUnavailable, "the container engine does not answer"
		e.Hint = "start Docker on the host; podspawn doctor says what is wrong"
	case contains(text, "no space left on device", "disk quota exceeded"):
		e.Kind, e.Msg = sandbox.KindCapacity, "the host's disk is full"
		e.Hint = "free space where the container engine keeps its data, or destroy sandboxes"
	case contains(text, "cannot allocate memory", "resource temporarily unavailable", "too many open files"):
		e.Kind, e.Msg = sandbox.KindCapacity, "the host has no memory or processes left for another sandbox"
		e.Hint = "destroy sandboxes that nobody needs, and try again"
	case contains(text, "unknown runtime", "unknown or invalid runtime", "runtime name"):
		e.Kind, e.Msg = sandbox.KindUnavailable, "the container engine does not know podspawn's runtime"
		e.Hint = "run podspawn server-setup as root, which registers gVisor with the engine"
	case contains(text, "iptables failed"):
		e.Kind, e.Msg = sandbox.KindUnavailable, "the container engine can't make a network: its own firewall rules are gone"
		e.Hint = "restart Docker, which makes them again; something like nft flush ruleset removed them"
	case contains(text, "executable file not found", "fork/exec", "unable to retrieve oci runtime error", "specified runtime path"):
		e.Kind, e.Msg = sandbox.KindUnavailable, "the sandboxing runtime does not start on this host"
		e.Hint = "podspawn doctor on the host checks gVisor; make up installs it"
	default:
		return e.Err
	}
	return e
}

func contains(text string, phrases ...string) bool {
	for _, p := range phrases {
		if strings.Contains(text, p) {
			return true
		}
	}
	return false
}

// gone reports whether the engine says that what we asked for does not exist.
func gone(err error) bool { return cerrdefs.IsNotFound(err) }

package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

// execOf is a command's path; any sandbox of the tenant's when ref is "".
func execOf(ref, exec string) string {
	if ref == "" {
		ref = "-"
	}
	return of(ref) + "/exec/" + url.PathEscape(exec)
}

// PollExec asks how a command goes on.
func (c *Client) PollExec(ctx context.Context, ref, exec string, r api.ExecPoll) (api.ExecResult, error) {
	q := url.Values{}
	if r.Cursor != "" {
		q.Set("cursor", r.Cursor)
	}
	if r.Wait > 0 {
		q.Set("wait_seconds", strconv.FormatFloat(r.Wait.Seconds(), 'f', -1, 64))
	}
	if r.MaxOutput > 0 {
		q.Set("max_output_bytes", strconv.Itoa(r.MaxOutput))
	}
	var out api.ExecResult
	return out, c.do(ctx, http.MethodGet, execOf(ref, exec)+"?"+q.Encode(), nil, nil, &out)
}

// InputExec writes to a command's stdin.
func (c *Client) InputExec(ctx context.Context, ref, exec string, r api.ExecInput) (api.ExecAccepted, error) {
	var out api.ExecAccepted
	return out, c.do(ctx, http.MethodPost, execOf(ref, exec)+"/input", nil, r, &out)
}

// SignalExec signals a command's process group.
func (c *Client) SignalExec(ctx context.Context, ref, exec string, r api.ExecSignal) (api.ExecAccepted, error) {
	var out api.ExecAccepted
	return out, c.do(ctx, http.MethodPost, execOf(ref, exec)+"/signal", nil, r, &out)
}

// maxEvent bounds an event: 32 KiB of output in base64 or escaped.
const maxEvent = 512 << 10

// StreamExec runs a command with its output as it comes.
func (c *Client) StreamExec(ctx context.Context, ref string, r api.ExecRequest, emit func(api.ExecEvent) error) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the command when emit fails
	h := http.Header{"Accept": {"text/event-stream"}, "Content-Type": {"application/json"}}
	resp, err := c.send(ctx, http.MethodPost, of(ref)+"/exec", h, bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c.failed(resp)
	}
	if mt, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || mt != "text/event-stream" {
		return c.noServer(resp.StatusCode)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	kind, data := "", ""
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "event: "):
			kind = line[len("event: "):]
		case strings.HasPrefix(line, "data: "):
			data = line[len("data: "):]
		case line == "" && kind != "":
			over, err := c.event(kind, data, emit)
			if err != nil || over {
				return err
			}
			kind, data = "", ""
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("call %s: %w", c.where, context.Cause(ctx))
	}
	err = lines.Err()
	if err == nil {
		err = errors.New("the stream ended without an exit")
	}
	return &sandbox.Error{Kind: sandbox.KindUnavailable, Msg: "the connection to " + c.where + " broke off", Err: err, Hint: "the command was killed; run it again"}
}

// event passes one event on, and reports whether it was the last.
func (c *Client) event(kind, data string, emit func(api.ExecEvent) error) (over bool, err error) {
	e := api.ExecEvent{Kind: kind}
	switch kind {
	case "started":
		var v struct {
			ExecID string `json:"exec_id"`
		}
		err = json.Unmarshal([]byte(data), &v)
		e.ExecID = v.ExecID
	case "stdout", "stderr":
		var d api.StreamData
		if err = json.Unmarshal([]byte(data), &d); err == nil {
			e.Data = []byte(d.Data)
			if d.Encoding == "base64" {
				e.Data, err = base64.StdEncoding.DecodeString(d.Data)
			}
		}
	case "exit":
		over = true
		e.Result = new(api.ExecResult)
		err = json.Unmarshal([]byte(data), e.Result)
	case "error":
		return true, c.problem(http.StatusOK, "application/problem+json", []byte(data))
	default:
		return false, nil // of a newer service
	}
	if err != nil {
		return true, &sandbox.Error{Kind: sandbox.KindInternal, Msg: "the answer of " + c.where + " can't be read", Err: err, Hint: "client and server may be of different versions"}
	}
	return over, emit(e)
}

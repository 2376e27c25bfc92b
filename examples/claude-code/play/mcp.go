package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// protocolVersion is the revision of MCP that this client asks for.
const protocolVersion = "2025-06-18"

const maxMessage = 4 << 20

// transport carries one JSON-RPC message and returns the answer to it, or nil
// for a notification.
type transport interface {
	send(ctx context.Context, message []byte, id int) (json.RawMessage, error)
	io.Closer
}

// server is an MCP server, as its client sees it. It is not safe for concurrent use.
type server struct {
	transport transport
	lastID    int
}

type rpcMessage struct {
	JSONRPC string          `json:"jsonrpc"`
	ID      *int            `json:"id,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  any             `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// request calls a method and decodes its result into out.
func (s *server) request(ctx context.Context, method string, params, out any) error {
	s.lastID++
	id := s.lastID
	b, err := json.Marshal(rpcMessage{JSONRPC: "2.0", ID: &id, Method: method, Params: params})
	if err != nil {
		return err
	}
	answer, err := s.transport.send(ctx, b, id)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	var m rpcMessage
	if err := json.Unmarshal(answer, &m); err != nil {
		return fmt.Errorf("%s: decode the answer: %w", method, err)
	}
	if m.Error != nil {
		return fmt.Errorf("%s: error %d: %s", method, m.Error.Code, m.Error.Message)
	}
	return json.Unmarshal(m.Result, out)
}

func (s *server) notify(ctx context.Context, method string) error {
	b, err := json.Marshal(rpcMessage{JSONRPC: "2.0", Method: method})
	if err != nil {
		return err
	}
	_, err = s.transport.send(ctx, b, 0)
	return err
}

// toolError is a tool's own error, which MCP carries inside a result.
type toolError struct{ text string }

func (e *toolError) Error() string { return e.text }

// call calls a tool and returns its structured content.
func (s *server) call(ctx context.Context, tool string, args map[string]any) (map[string]any, error) {
	var result struct {
		IsError bool `json:"isError"`
		Content []struct {
			Text string `json:"text"`
		} `json:"content"`
		Structured map[string]any `json:"structuredContent"`
	}
	if err := s.request(ctx, "tools/call", map[string]any{"name": tool, "arguments": args}, &result); err != nil {
		return nil, err
	}
	if result.IsError {
		var texts []string
		for _, c := range result.Content {
			texts = append(texts, c.Text)
		}
		return result.Structured, &toolError{text: tool + ": " + strings.Join(texts, " ")}
	}
	if result.Structured == nil {
		return nil, fmt.Errorf("%s: the result has no structured content", tool)
	}
	return result.Structured, nil
}

// httpTransport is Streamable HTTP.
type httpTransport struct {
	url, token string
	session    string // the server's, from its first answer on
	client     *http.Client
}

func newHTTPTransport(url, token string) *httpTransport {
	return &httpTransport{url: url, token: token, client: &http.Client{Timeout: 60 * time.Second}}
}

func (t *httpTransport) send(ctx context.Context, message []byte, id int) (json.RawMessage, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(message))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+t.token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("MCP-Protocol-Version", protocolVersion)
	if t.session != "" {
		req.Header.Set("Mcp-Session-Id", t.session)
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if s := resp.Header.Get("Mcp-Session-Id"); s != "" {
		t.session = s
	}
	body := io.LimitReader(resp.Body, maxMessage)
	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(body) // the status is the error; the body only explains it
		return nil, fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(b))
	}
	if id == 0 {
		return nil, nil
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return readEvents(body, id)
	}
	return io.ReadAll(body)
}

func (t *httpTransport) Close() error { return nil }

// readEvents reads a stream of server-sent events until the answer to id.
func readEvents(r io.Reader, id int) (json.RawMessage, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxMessage)
	var data []string
	for sc.Scan() {
		line := sc.Text()
		if text, ok := strings.CutPrefix(line, "data:"); ok {
			data = append(data, strings.TrimPrefix(text, " "))
			continue
		}
		if line != "" || len(data) == 0 {
			continue
		}
		message := []byte(strings.Join(data, "\n"))
		data = nil
		if answers(message, id) {
			return message, nil
		}
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	return nil, errors.New("the stream ended before the answer")
}

func answers(message []byte, id int) bool {
	var m rpcMessage
	return json.Unmarshal(message, &m) == nil && m.Method == "" && m.ID != nil && *m.ID == id
}

// stdioTransport is a child that speaks one message a line.
type stdioTransport struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startStdio(ctx context.Context, argv []string) (*stdioTransport, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, maxMessage)
	return &stdioTransport{cmd: cmd, in: in, out: sc}, nil
}

func (t *stdioTransport) send(_ context.Context, message []byte, id int) (json.RawMessage, error) {
	if _, err := t.in.Write(append(message, '\n')); err != nil {
		return nil, err
	}
	if id == 0 {
		return nil, nil
	}
	for t.out.Scan() {
		if answers(t.out.Bytes(), id) {
			return bytes.Clone(t.out.Bytes()), nil
		}
	}
	if err := t.out.Err(); err != nil {
		return nil, err
	}
	return nil, errors.New("the server ended")
}

// Close ends the child by ending its stdin, as MCP says.
func (t *stdioTransport) Close() error {
	if err := t.in.Close(); err != nil {
		return err
	}
	return t.cmd.Wait()
}

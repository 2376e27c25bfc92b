package mcpserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
)

const (
	maxLine    = 2 << 20 // a message: a tool's arguments with 1 MiB of stdin, escaped
	maxPending = 16      // requests at a time; more wait in the pipe
)

// ServeStdio answers the messages on in, one a line, until in ends or ctx does.
// When in ends, requests under way are still answered. When ctx ends, they are
// cancelled, and a Read that blocks is left to end by itself.
//
// mcp-go has a stdio server as well. It throws away answers that are not ready
// when in ends, keeps its session in a package variable, and reads lines of any
// length.
func (s *Server) ServeStdio(ctx context.Context, in io.Reader, out io.Writer) error {
	session := server.NewInProcessSession("stdio", nil)
	if err := s.mcp.RegisterSession(ctx, session); err != nil {
		return fmt.Errorf("register session: %w", err)
	}
	defer s.mcp.UnregisterSession(context.WithoutCancel(ctx), session.SessionID())
	ctx, cancel := context.WithCancel(s.mcp.WithContext(ctx, session))
	var pending, listening sync.WaitGroup
	defer func() {
		cancel()
		pending.Wait()
		listening.Wait()
	}()

	lines, readErr := readLines(ctx, in)
	w := &lineWriter{w: out}
	slots := make(chan struct{}, maxPending)
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-session.ClientNotifications():
			if err := w.write(n); err != nil {
				return err
			}
		case line, ok := <-lines:
			if !ok {
				pending.Wait()
				return <-readErr
			}
			method, request := methodOf(line)
			if !request {
				// A notification: in order, and at once, since it may cancel a request.
				if err := w.write(s.mcp.HandleMessage(ctx, line)); err != nil {
					return err
				}
				continue
			}
			if method == string(mcp.MethodSubscriptionsListen) {
				// It lasts until the session does: it has no slot, and no end to wait for.
				listening.Go(func() {
					_ = w.write(s.mcp.HandleMessage(ctx, line)) // the session ends either way
				})
				continue
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			pending.Go(func() {
				defer func() { <-slots }()
				if err := w.write(s.mcp.HandleMessage(ctx, line)); err != nil {
					cancel() // nobody reads answers any more
				}
			})
		}
	}
}

// methodOf returns a message's method and whether it expects an answer of its own.
func methodOf(line []byte) (method string, request bool) {
	var m struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
	}
	if json.Unmarshal(line, &m) != nil {
		return "", false
	}
	return m.Method, len(m.ID) > 0 && m.Method != ""
}

// readLines reads in a goroutine that ends with in, or with the first line after ctx.
func readLines(ctx context.Context, in io.Reader) (<-chan []byte, <-chan error) {
	lines, done := make(chan []byte), make(chan error, 1)
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(in)
		scanner.Buffer(make([]byte, 0, 64<<10), maxLine)
		for scanner.Scan() {
			if len(scanner.Bytes()) == 0 {
				continue
			}
			line := append([]byte(nil), scanner.Bytes()...)
			select {
			case lines <- line:
			case <-ctx.Done():
				done <- nil
				return
			}
		}
		err := scanner.Err()
		if errors.Is(err, bufio.ErrTooLong) {
			err = fmt.Errorf("a message exceeds %d bytes", maxLine)
		}
		done <- err
	}()
	return lines, done
}

// lineWriter writes one message a line. It is safe for concurrent use.
type lineWriter struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (l *lineWriter) write(m mcp.JSONRPCMessage) error {
	if m == nil {
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	return nil
}

package localapi

import "time"

// Finished is the one byte that a hook may write on the lease of a channel: the
// remote command ended by itself. A lease that closes without it was cut off, be
// it that the client vanished or that the hook was killed.
const Finished byte = 'f'

// ChannelDo says what the hook of an open channel wants of OpChannel.
type ChannelDo string

// What it may want.
const (
	// ChannelAsk only asks for the present deadline.
	ChannelAsk ChannelDo = "ask"
	// ChannelHold registers the channel with a daemon that began after it did: the
	// connection stays open as the channel's lease.
	ChannelHold ChannelDo = "hold"
	// ChannelFinish says that the channel's command ended by itself, when there is
	// no lease left to say it on.
	ChannelFinish ChannelDo = "finish"
)

// ChannelRequest is about the channel that the peer serves.
type ChannelRequest struct {
	Do ChannelDo `json:"do"`
}

// ChannelResponse is the answer.
type ChannelResponse struct {
	ExpiresAt time.Time `json:"expires_at"` // of the sandbox, as it is now
}

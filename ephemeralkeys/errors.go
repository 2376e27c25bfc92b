package ephemeralkeys

import "errors"

// Why a certificate was refused: one sentinel a reason, for errors.Is. The text
// around them names no secret and repeats nothing unbounded.
var (
	ErrMalformed       = errors.New("malformed certificate")
	ErrHostCertificate = errors.New("not a user certificate")
	ErrUnknownCA       = errors.New("signed by an unknown authority")
	ErrSignature       = errors.New("signature does not verify")
	ErrNotYetValid     = errors.New("certificate is not valid yet")
	ErrExpired         = errors.New("certificate has expired")
	ErrLifetime        = errors.New("certificate is valid for longer than any that is issued")
	ErrPrincipals      = errors.New("principals are not exactly the login")
	ErrCriticalOption  = errors.New("critical option is not allowed")
	ErrExtension       = errors.New("extension is not allowed")
	ErrBinding         = errors.New("not bound to a sandbox")
)

// Why something was not signed or not read.
var (
	// ErrGrant means that what was asked for may not be signed, whoever asks.
	ErrGrant = errors.New("grant refused")
	// ErrPublicKey means that the text is not a public key that we sign.
	ErrPublicKey = errors.New("not an acceptable public key")
	// ErrPrivateKey means that somebody sent a private key, which must be
	// considered lost. It always comes with ErrPublicKey.
	ErrPrivateKey = errors.New("this is a private key; send the .pub file, and replace this key, since it has left its owner")
	// ErrKeyFile means that a private key's file is not safe to use or not readable as a key.
	ErrKeyFile = errors.New("key file refused")
	// ErrKRL means that a revocation list would be one that sshd can't read, which
	// would lock everybody out.
	ErrKRL = errors.New("revocation list refused")
)

package install

import (
	"strings"

	"github.com/podspawn/podspawn/sandbox"
)

// dropInHeader opens our drop-in; a file of that name without it is not ours.
const dropInHeader = "# Written by podspawn server-setup; podspawn server-setup --uninstall removes it.\n"

// setting is one line of the Match block.
type setting struct{ key, value string }

// matchSettings is what a sandbox login may do with sshd. A keyword that is left
// out would come from the rest of sshd_config, so each one that decides who gets
// in, what runs or what is forwarded is here, also where the value is the default.
func matchSettings() []setting {
	return []setting{
		// Who gets in: a certificate of our CA for this login, or for a user's login a
		// key that the keys hook knows, and nothing else.
		{"AuthenticationMethods", "publickey"},
		{"PubkeyAuthentication", "yes"},
		{"PubkeyAcceptedAlgorithms", certAlgorithms + "," + keyAlgorithms},
		{"CASignatureAlgorithms", "ssh-ed25519"},
		{"TrustedUserCAKeys", userCAPub},
		{"RevokedKeys", revokedKRL},
		{"AuthorizedKeysFile", "none"},
		{"AuthorizedPrincipalsFile", "none"},
		{"AuthorizedPrincipalsCommand", HookPath + " principals %u %t %k"},
		{"AuthorizedPrincipalsCommandUser", authUser},
		// After the one for principals: sshd (9.2) ignores that one once this is set.
		{"AuthorizedKeysCommand", HookPath + " keys %u %t %k"},
		{"AuthorizedKeysCommandUser", authUser},
		{"PasswordAuthentication", "no"},
		{"PermitEmptyPasswords", "no"},
		{"KbdInteractiveAuthentication", "no"},
		{"GSSAPIAuthentication", "no"},
		{"HostbasedAuthentication", "no"},
		{"AllowUsers", "*"}, // a list for everybody would refuse our logins
		{"AllowGroups", groupName},
		// What runs.
		{"ForceCommand", HookPath + " session"},
		{"PermitTTY", "yes"}, // the principals line decides
		{"PermitUserRC", "no"},
		{"ChrootDirectory", "none"},
		{"ExposeAuthInfo", "no"}, // PAM sees the certificate without it, and it leaves files behind
		{"AcceptEnv", "LANG LC_ALL LC_COLLATE LC_CTYPE LC_MESSAGES LC_MONETARY LC_NUMERIC LC_TIME"},
		{"Banner", "none"},
		{"MaxSessions", "64"},
		{"ClientAliveInterval", "30"},
		{"ClientAliveCountMax", "4"},
		// What is forwarded: TCP, which sshd does in the portal's network, and the
		// agent, each when the principals line grants it. A unix socket would be one
		// of the host's.
		{"DisableForwarding", "no"},
		{"AllowTcpForwarding", "yes"},
		{"AllowStreamLocalForwarding", "no"},
		{"AllowAgentForwarding", "yes"},
		{"X11Forwarding", "no"},
		{"GatewayPorts", "no"},
		{"PermitListen", "any"},
		{"PermitOpen", "any"},
		{"PermitTunnel", "no"},
	}
}

// certAlgorithms are certificates of every key type that a client may have.
const certAlgorithms = "ssh-ed25519-cert-v01@openssh.com,sk-ssh-ed25519-cert-v01@openssh.com," +
	"ecdsa-sha2-nistp256-cert-v01@openssh.com,ecdsa-sha2-nistp384-cert-v01@openssh.com,ecdsa-sha2-nistp521-cert-v01@openssh.com," +
	"sk-ecdsa-sha2-nistp256-cert-v01@openssh.com,rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-256-cert-v01@openssh.com"

// keyAlgorithms are plain keys, of users.
const keyAlgorithms = "ssh-ed25519,sk-ssh-ed25519@openssh.com,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521," +
	"sk-ecdsa-sha2-nistp256@openssh.com,rsa-sha2-512,rsa-sha2-256"

// dropInText is the whole drop-in.
func dropInText() string {
	var b strings.Builder
	b.WriteString(dropInHeader)
	b.WriteString("# Sandbox logins only; nothing here is about other users. The certificate below is\n# the machine's own host key, signed so that clients need not ask about it.\n\n")
	b.WriteString("HostCertificate " + hostCert + "\n\n")
	b.WriteString("Match Group " + groupName + "\n")
	for _, s := range matchSettings() {
		b.WriteString("    " + s.key + " " + s.value + "\n")
	}
	b.WriteString("Match all\n")
	return b.String()
}

// probeLogin stands for any sandbox login where sshd is asked what it would do
// with one. Its entry is never in the host's user database.
var probeLogin = sandbox.ID("sbx_" + strings.Repeat("0", 16)).Login()

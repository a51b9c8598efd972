// SPDX-License-Identifier: LGPL-3.0-or-later

//go:build !linux

package ethmcast

import (
	"net"
	"time"
)

// tcpRTT returns 0: only Linux is asked for the round-trip time of a connection.
func tcpRTT(net.Conn) time.Duration { return 0 }

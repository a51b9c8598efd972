// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

// FindConfig is findConfig for tests.
var FindConfig = findConfig

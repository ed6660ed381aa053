// SPDX-License-Identifier: Apache-2.0

// Package schema embeds the JSON Schemas of all messages of the update protocol, which are beside it for people to read.
package schema

import "embed"

// Files are the schemas.
//
//go:embed *.json
var Files embed.FS

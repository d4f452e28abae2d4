// The addon is native code: Next must require it at run time, not bundle it.
export default { serverExternalPackages: ['@alex/p2p'] }

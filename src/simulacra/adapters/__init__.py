"""Our models behind other libraries' interfaces."""

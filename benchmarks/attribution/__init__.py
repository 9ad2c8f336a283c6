"""Attribution: are conversations held in a role given back to it, and strangers to the background?"""
